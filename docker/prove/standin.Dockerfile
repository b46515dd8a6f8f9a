# Stands in for NVIDIA's image where that cannot be pulled: Debian's Python, and tritonserver with its Python
# backend out of the wheel nvidia-pytriton, laid out as in NVIDIA's. The build context `site-packages` is an
# environment in which the wheel is installed.
ARG DEBIAN_IMAGE
FROM ${DEBIAN_IMAGE}

# Not the wheel's stub for this Python alone: the one that NVIDIA's image has is called so too.
# hadolint ignore=DL3022
COPY --from=site-packages pytriton/tritonserver/bin /opt/tritonserver/bin
# hadolint ignore=DL3022
COPY --from=site-packages pytriton/tritonserver/backends /opt/tritonserver/backends
# hadolint ignore=DL3022
COPY --from=site-packages pytriton/tritonserver/python_backend_stubs/3.11/triton_python_backend_stub \
    /opt/tritonserver/backends/python/triton_python_backend_stub
# hadolint ignore=DL3022
COPY --from=site-packages nvidia_pytriton.libs /opt/tritonserver/lib

# The wheel has no LibTorch backend, so the entry point puts ours in its place, which wants PyTorch. That is too
# large to copy: it is mounted, and importable after the image's own packages.
RUN mkdir /opt/torch && echo /opt/torch > /usr/lib/python3/dist-packages/standin.pth

# NVIDIA's entry point sets variables, perhaps LD_LIBRARY_PATH, and becomes the command that it is given.
RUN mkdir /opt/nvidia \
    && printf '#!/bin/bash\nexport STANDIN_ENTRYPOINT=1\nexec "$@"\n' > /opt/nvidia/nvidia_entrypoint.sh \
    && chmod 755 /opt/nvidia/nvidia_entrypoint.sh

ENV LD_LIBRARY_PATH=/opt/tritonserver/lib
