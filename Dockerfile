# Two images: `operator` (no torch, no CUDA) and `server`. Dependencies sit in a layer that only a lock file changes; the project's
# own code is a small last layer, so that a change of it costs seconds to build, push and pull.
#
#   docker build --target server -t millrace-server .

ARG BASE_IMAGE=python:3.12-slim

FROM ${BASE_IMAGE} AS base
ENV PATH=/opt/millrace/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/millrace/app \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp
COPY requirements/install requirements/uv.txt /opt/requirements/

FROM base AS operator-dependencies
ARG SSL_CERT_FILE=
ARG PIP_CERT=
COPY requirements/operator.txt /opt/requirements/
RUN sh /opt/requirements/install /opt/requirements/operator.txt

FROM operator-dependencies AS operator
COPY operator/millrace_operator /opt/millrace/app/millrace_operator
COPY server/millrace_server/__init__.py server/millrace_server/settings.py /opt/millrace/app/millrace_server/
RUN python -m compileall -q /opt/millrace/app
USER 10001:10001
EXPOSE 8081
ENTRYPOINT ["python", "-m", "millrace_operator"]

FROM base AS native
ARG SSL_CERT_FILE=
ARG PIP_CERT=
COPY requirements/native.txt /opt/requirements/
RUN sh /opt/requirements/install /opt/requirements/native.txt
COPY server/native /opt/native
RUN sh /opt/native/build python /opt/native/built

FROM base AS server-dependencies
ARG SSL_CERT_FILE=
ARG PIP_CERT=
COPY requirements/server.txt /opt/requirements/
RUN sh /opt/requirements/install /opt/requirements/server.txt
# What the NVIDIA container runtime gives to a pod that was granted a GPU.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM server-dependencies AS server
COPY server/millrace_server /opt/millrace/app/millrace_server
COPY --from=native /opt/native/built/ /opt/millrace/app/millrace_server/engine/
RUN python -m compileall -q /opt/millrace/app
USER 10001:10001
EXPOSE 8000 9090
ENTRYPOINT ["python", "-m", "millrace_server"]
