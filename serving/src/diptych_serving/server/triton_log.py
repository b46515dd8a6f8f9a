"""Reads tritonserver's log: which model failed and why, and which lines to show."""

from __future__ import annotations

import re

# E1123 18:08:55.3 7191 model_lifecycle.cc:642] "failed to load 'NAME' version 1: Internal: CAUSE\n\nAt:..."
FAILED_MODEL = re.compile(r"\"failed to load '(?P<model>[^']+)' version (?P<version>\d+): (?P<cause>.*)\"$")
ERROR_LINE = re.compile(r"^[EF]\d{4} .*?\] \"?(?P<cause>.*?)\"?$|^error: (?P<last>.*)$")
# After such an early end tritonserver waits forever (docs/triton.md, 4).
DEAD_STUB = re.compile(
    r"Failed to preinitialize Python stub: (?P<cause>.*)|(?P<linker>error while loading .*)"
)
TRITON_LINE = re.compile(r"^(?P<level>[IWEF])\d{4} \d\d:\d\d:\d\d\.")
LEVELS_OF_COMPLAINT = re.compile(r"^[WEF]\d{4} ")
LOADING = re.compile(r'^I\d{4} .*\] "loading: ([^:"]+):\d+"', re.MULTILINE)
LOADED = re.compile(r"^I\d{4} .*\] \"successfully loaded '([^']+)'", re.MULTILINE)
STARTED = re.compile(r'^I\d{4} .*\] "Started HTTPService at (\S+)"', re.MULTILINE)
TABLE_LINE = re.compile(r"^[+|]")
# Every server without a GPU logs these, and works.
HARMLESS = ("CudaDriverHelper", "unable to create stream", "NVML", "DCGM", "pinned system memory")
MAX_LINES = 5
# If a GPU is expected, these lines say why it is not used.
ABOUT_GPUS = re.compile(r"cuda|gpu|nvml|driver|stream|pinned", re.IGNORECASE)


def describe_failure(log: str) -> str:
    """The models that failed to load, each with its cause; else the first error; else the last lines."""
    lines = log.splitlines()
    failures = [match for line in lines if (match := FAILED_MODEL.search(line))]
    if failures:
        return "\n".join(
            f"model {match['model']}, version {match['version']}: {_first_words(match['cause'])}"
            for match in failures
        )
    for line in lines:
        if not _is_harmless(line) and (match := ERROR_LINE.match(line)):
            return _first_words(match["cause"] or match["last"])
    return "\n".join(lines[-MAX_LINES:]) or "it wrote nothing to its log"


def describe_start(log: str) -> str:
    """One line about a server that is not ready: the models that it still loads, or where it listens; and its
    last warning or error.
    """
    begun = dict.fromkeys(LOADING.findall(log))
    loaded = set(LOADED.findall(log))
    if pending := [model for model in begun if model not in loaded]:
        doing = f"it loads {', '.join(pending)}"
    elif listening := STARTED.findall(log):
        doing = f"it says that it listens at {listening[-1]}, but answers nothing there"
    else:
        doing = "it has not begun to load models" if not begun else "it has loaded the models"
    complaints = [
        line for line in log.splitlines() if LEVELS_OF_COMPLAINT.match(line) and deserves_showing(line)
    ]
    return f"{doing}; its log: {complaints[-1].strip()}" if complaints else doing


def find_dead_stub(log: str) -> str | None:
    """Why a Python model's process ended before tritonserver could know."""
    match = DEAD_STUB.search(log)
    return match and (match["cause"] or match["linker"])


def describe_missing_gpu(log: str) -> str:
    """The warnings and errors about GPUs, including those that do not matter on a CPU."""
    lines = [line for line in log.splitlines() if ABOUT_GPUS.search(line)]
    found = [line for line in lines if (match := TRITON_LINE.match(line)) and match["level"] != "I"]
    return "\n".join(found[:MAX_LINES]) or "its log says nothing about GPUs"


def deserves_showing(line: str) -> bool:
    """Warnings, errors and the models' output; not Triton's notices and tables."""
    match = TRITON_LINE.match(line)
    if match and match["level"] == "I":
        return False
    return bool(line.strip()) and not TABLE_LINE.match(line) and not _is_harmless(line)


def _is_harmless(line: str) -> bool:
    return any(words in line for words in HARMLESS)


def _first_words(cause: str) -> str:
    r"""The text before the traceback; the log writes line breaks as \n."""
    return cause.partition(r"\n\nAt:")[0].replace(r"\n", "\n").strip()
