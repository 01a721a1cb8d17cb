# An image in which `make test` passes: docker build -t matquant . && docker run --rm matquant
# Nothing is fetched when it runs.  For a GPU: docker build --build-arg PIP_EXTRA_INDEX_URL= -t matquant .
FROM python:3.12-slim-bookworm

# git: results and tests ask for the commit.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make procps \
    && rm -rf /var/lib/apt/lists/* \
    && git config --system --add safe.directory /matquant

# torch of the version in requirements.lock, without CUDA: a tenth of the size.
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

WORKDIR /matquant
COPY . .
RUN make install

ENV HF_HUB_OFFLINE=1
CMD ["make", "test"]
