"""One simulated server: cores that processes share, and steps with their queues.

It follows the real server's rules: a chain of steps, single-threaded instances, batches of what waits, a
bound and a time limit in the first queue. What a step costs comes from `costs.py`.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence

import simpy

from bench.scale.costs import WEIGHT, Costs, StepPlan

ANSWERED, REFUSED, LOST = "answered", "refused", "lost"
# How long Triton overlooks a waiting request in a queue with a bound or a timeout (docs/triton.md, 18).
OVERLOOKED_S = 0.5


@dataclasses.dataclass(slots=True, eq=False)
class Task:
    remaining_s: float
    weight: float
    done: Callable[[], None]
    rate: float = 0.0


class Processor:
    """Cores that single-threaded tasks share by weight, as Linux does. No task is faster than one core."""

    def __init__(self, env: simpy.Environment, num_cores: int) -> None:
        self._env = env
        self._num_cores = num_cores
        self._tasks: list[Task] = []
        self._at_s = env.now
        self._plan, self._is_settling = 0, False
        self.busy_s = 0.0

    def run(self, work_s: float, weight: float, done: Callable[[], None]) -> None:
        """Call `done` when that much CPU time has been given to it."""
        if not self._is_settling:
            self._advance()
        self._tasks.append(Task(work_s, weight, done))
        if not self._is_settling:
            self._schedule()

    def _advance(self) -> None:
        passed_s = self._env.now - self._at_s
        self._at_s = self._env.now
        for task in self._tasks:
            task.remaining_s -= passed_s * task.rate
            self.busy_s += passed_s * task.rate

    def _schedule(self) -> None:
        self._plan += 1
        if not self._tasks:
            return
        self._share()
        plan = self._plan
        next_s = min(task.remaining_s / task.rate for task in self._tasks)
        timeout = self._env.timeout(max(0.0, next_s))
        timeout.callbacks.append(lambda _: self._finish(plan))

    def _share(self) -> None:
        """One core for each task; where there are more tasks than cores, by weight."""
        tasks, cores = self._tasks, float(self._num_cores)
        if len(tasks) <= cores:
            for task in tasks:
                task.rate = 1.0
            return
        total = sum(task.weight for task in tasks)
        for task in sorted(tasks, key=lambda task: -task.weight):
            task.rate = min(1.0, cores * task.weight / total)  # what is above one core goes to the others
            cores, total = cores - task.rate, total - task.weight

    def _finish(self, plan: int) -> None:
        if plan != self._plan:
            return  # something has started meanwhile, and another end was planned
        self._advance()
        ended = [task for task in self._tasks if task.remaining_s <= 1e-9]
        self._tasks = [task for task in self._tasks if task.remaining_s > 1e-9]
        self._is_settling = True  # what ends lets others start in the same instant: one plan for all of it
        for task in ended:
            task.done()
        self._is_settling = False
        self._schedule()


@dataclasses.dataclass(slots=True, eq=False)
class Request:
    """cost     what this item costs as a multiple of the mean, by step
    on_end   called once, with ANSWERED, REFUSED or LOST
    given_s  what is left of its caller's deadline: it shortens the time in a queue that has a limit
    """

    cost: dict[str, float]
    on_end: Callable[[str], None]
    given_s: float
    queued_s: float = 0.0
    is_over: bool = False

    def end(self, outcome: str) -> None:
        if not self.is_over:
            self.is_over = True
            self.on_end(outcome)


class Step:
    def __init__(
        self,
        env: simpy.Environment,
        processor: Processor,
        plan: StepPlan,
        costs: Costs,
        on_done: Callable[[Request], None],
    ) -> None:
        self._env, self._processor, self._plan, self._on_done = env, processor, plan, on_done
        self._cost = costs.steps[plan.name]
        self._queue: collections.deque[Request] = collections.deque()
        self._num_idle = plan.num_instances
        self._has_alarm = False
        self.queue_s, self.num_done = 0.0, 0

    def put(self, request: Request) -> None:
        plan = self._plan
        if plan.queue_size and len(self._queue) >= plan.queue_size:
            request.end(REFUSED)
            return
        request.queued_s = self._env.now
        self._queue.append(request)
        if self._num_idle:
            self._look()
        elif not plan.is_staged and not self._has_alarm:
            self._set_alarm()

    def _set_alarm(self) -> None:
        self._has_alarm = True
        self._env.timeout(OVERLOOKED_S).callbacks.append(self._ring)

    def _ring(self, _: simpy.Event) -> None:
        self._has_alarm = False
        self._look()
        if self._queue:
            self._set_alarm()

    def _look(self) -> None:
        """Start what can start. A request that has waited too long is refused only now, as Triton does."""
        queue, plan, now_s = self._queue, self._plan, self._env.now
        while plan.timeout_s and queue and now_s - queue[0].queued_s > min(plan.timeout_s, queue[0].given_s):
            queue.popleft().end(REFUSED)
        while self._num_idle and queue:
            batch = [queue.popleft() for _ in range(min(plan.num_joined, len(queue)))]
            self.queue_s += sum(now_s - request.queued_s for request in batch)
            rows = sum(request.cost[plan.name] for request in batch)
            work_s = (self._cost.fixed_ms + self._cost.row_ms * rows) / 1000
            self._num_idle -= 1
            self._processor.run(work_s, plan.weight, lambda batch=batch: self._finish(batch))  # type: ignore[misc]

    def _finish(self, batch: Sequence[Request]) -> None:
        self._num_idle += 1
        self.num_done += len(batch)
        if self._plan.is_staged:
            self._look()
        for request in batch:
            self._on_done(request)


class Pod:
    """A server with cores of its own.

    is_up     false once its machine is lost: then nothing answers, and nothing says so
    has_left  true once its server has ended in order: then connections are refused
    """

    def __init__(
        self,
        env: simpy.Environment,
        costs: Costs,
        plans: Sequence[StepPlan],
        *,
        num_cores: int,
        zone: int = 0,
    ) -> None:
        self._env, self._costs = env, costs
        self.zone = zone
        self.is_up, self.has_left = True, False
        self.processor = Processor(env, num_cores)
        self.steps: list[Step] = []
        for number, plan in enumerate(plans):
            self.steps.append(
                Step(env, self.processor, plan, costs, lambda r, n=number + 1: self._pass_on(r, n))
            )  # type: ignore[misc]
        self.num_ended = 0

    def ask(self, cost: dict[str, float], on_end: Callable[[str], None], given_s: float) -> None:
        """Send one request. A pod that is lost never calls `on_end`."""
        if self.has_left:
            on_end(LOST)
        if self.has_left or not self.is_up:
            return

        def end(outcome: str) -> None:
            self.num_ended += 1
            if self.is_up:
                on_end(outcome)

        request = Request(cost, end, given_s)
        self.processor.run(self._costs.front_ms / 1000, WEIGHT, lambda: self.steps[0].put(request))

    def _pass_on(self, request: Request, number: int) -> None:
        if number < len(self.steps):
            self.steps[number].put(request)
            return
        pause = self._env.timeout(self._costs.idle_ms / 1000)
        pause.callbacks.append(lambda _: request.end(ANSWERED))
