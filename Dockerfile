# The environment of requirements.lock for a machine with NVIDIA GPUs (its driver and the NVIDIA container toolkit).
# docs/installation.md tells how to build and run it.
FROM python:3.11-slim

# g++ is what torch.compile builds with
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make g++ \
    && rm -rf /var/lib/apt/lists/* \
    && git config --system --add safe.directory /danet

WORKDIR /danet
COPY requirements.lock ./
RUN pip install --no-cache-dir --no-deps --require-hashes --requirement requirements.lock
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable .

# a home and a name for any user that `docker run --user` names: DVC stops where the user has no name
ENV HOME=/tmp USER=danet PYTHONUNBUFFERED=1
CMD ["danet", "doctor"]
