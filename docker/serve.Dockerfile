# A warm server for the models of one folder (docs/serving.md). From the root of the repository, with the models beside it
# (the export needs the extra openvino, or --no-programs where the server computes on a GPU):
#
#   flaresemi_export -d my_dataset -o docker/model
#   docker build -f docker/serve.Dockerfile -t flaresemi-serve .
#   head -c 24 /dev/urandom | base64 > token
#   docker run --rm --gpus device=0 --user $(id -u):$(id -g) --read-only --tmpfs /tmp -p 127.0.0.1:8390:8390 \
#       --stop-timeout 600 -v "$PWD/token:/token:ro" -v "$PWD/scans:/data:ro" flaresemi-serve --allow /data
#
# Without --stop-timeout, Docker kills 10 s after it asked to end, and what is being answered is not.
# Without a GPU: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu --build-arg EXTRA=[serve,dicom,openvino].
# --build-arg BASE=NAME: another image with Python 3.11 or newer and pip.
ARG BASE=python:3.11-slim
FROM ${BASE}

ARG TORCH_INDEX=https://pypi.org/simple
ARG EXTRA=[serve,dicom]
WORKDIR /workspace

COPY constraints.txt source/
RUN pip install --no-cache-dir --index-url ${TORCH_INDEX} --extra-index-url https://pypi.org/simple \
    torch==2.13.0 -c source/constraints.txt
COPY setup.py pyproject.toml README.md LICENSE source/
COPY flaresemi source/flaresemi
RUN pip install --no-cache-dir "./source${EXTRA}" -c source/constraints.txt && rm -r source

COPY docker/model model

ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
EXPOSE 8390
HEALTHCHECK --start-period=120s --interval=30s --timeout=5s CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8390/health', timeout=4)"]
ENTRYPOINT ["flaresemi_serve", "-m", "model", "--host", "0.0.0.0", "--token-file", "/token"]
