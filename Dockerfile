# coma in a container. The wheels of torch and DALI bring CUDA: the base image has none, the host has a driver and the
# NVIDIA Container Toolkit.
#
#   docker build -t coma-vision .                         # CUDA 12; --build-arg CUDA=13 for CUDA 13
#   docker run --rm --gpus all --shm-size=8g coma-vision doctor
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" coma-vision shard photos
#
# /data is the current folder of the commands. --shm-size is for runs on several GPUs: NCCL communicates through /dev/shm.
FROM python:3.12-slim-bookworm

# g++ is what --compile needs.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

ARG CUDA=12
ENV UV_PROJECT_ENVIRONMENT=/opt/coma UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never
WORKDIR /src
COPY pyproject.toml uv.lock ./
RUN pip install --no-cache-dir uv \
    && uv sync --no-cache --locked --no-default-groups --group "cuda$CUDA" --extra s3 --extra gcs --extra onnx --no-install-project
COPY . .
RUN uv sync --no-cache --locked --no-default-groups --group "cuda$CUDA" --extra s3 --extra gcs --extra onnx --no-editable

# Any --user may write to the home folder; USER is for libraries that ask for a name which /etc/passwd does not have.
RUN useradd --create-home --uid 1000 coma && chmod 0777 /home/coma && install -d -o coma /data
ENV HOME=/home/coma USER=coma PATH=/opt/coma/bin:$PATH NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
USER coma
WORKDIR /data
ENTRYPOINT ["coma"]
CMD ["--help"]
