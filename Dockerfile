# Two images. train: everything, on Merlin's own container. serve: Triton and what a repository needs.
#   docker build --target train -t ameir-merlin:train .
#   docker build --target serve -t ameir-merlin:serve .

FROM nvcr.io/nvidia/merlin/merlin-pytorch:23.12 AS train
# Merlin, RAPIDS, torch, pandas and pyarrow are the container's (Python 3.10): they fit each other and its CUDA.
COPY docker/train.txt /opt/ameir-merlin/docker/train.txt
RUN python3 -m pip install --no-cache-dir --requirement /opt/ameir-merlin/docker/train.txt
COPY pyproject.toml README.md /opt/ameir-merlin/
COPY ameir_merlin /opt/ameir-merlin/ameir_merlin
COPY workflows /opt/ameir-merlin/workflows
RUN python3 -m pip install --no-cache-dir --no-deps /opt/ameir-merlin \
 && useradd --create-home --uid 10001 ameir \
 && install --directory --owner=ameir /runs
USER 10001
WORKDIR /runs
ENTRYPOINT ["ameir-merlin"]
CMD ["--help"]

FROM nvcr.io/nvidia/tritonserver:26.07-py3 AS serve
# Ubuntu 24.04, below, lets pip write into its own Python only where it is told so.
ARG PIP_BREAK_SYSTEM_PACKAGES=1
# The steps of a repository need numpy, and ONNX Runtime for the model; what starts the server, nothing.
COPY docker/serve.txt /opt/ameir-merlin/docker/serve.txt
RUN python3 -m pip install --no-cache-dir --requirement /opt/ameir-merlin/docker/serve.txt
COPY pyproject.toml README.md /opt/ameir-merlin/
COPY ameir_merlin /opt/ameir-merlin/ameir_merlin
RUN python3 -m pip install --no-cache-dir --no-deps /opt/ameir-merlin \
 && useradd --create-home --uid 10001 ameir
USER 10001
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
  CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=2)"]
ENTRYPOINT ["python3", "-m", "ameir_merlin.serve", "--host", "0.0.0.0"]
CMD ["/repository"]
