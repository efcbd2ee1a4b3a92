# One image for every role: `docker run IMAGE sidecar …`, `… agent …`, `… hub …` or `… up …`.
FROM debian:12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE ./
# Where the registry is behind a proxy with a CA of its own: --build-arg PIP_CERT=FILE, the file mounted into the build.
ARG PIP_CERT
RUN python3 -m venv /opt/peat
# The lock holds the development tools too; as constraints it pins what the service needs and no more is installed.
RUN grep -vE '^ +(--hash|#)' requirements.lock | sed -E 's/ \\$//' > constraints.txt
COPY src ./src
RUN /opt/peat/bin/pip install --no-cache-dir --constraint constraints.txt .

FROM debian:12-slim
RUN apt-get update && apt-get install -y --no-install-recommends python3 ca-certificates && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --home-dir /var/lib/peat --create-home peat
COPY --from=build /opt/peat /opt/peat
ENV PATH=/opt/peat/bin:$PATH PEAT_DATA_DIR=/var/lib/peat PYTHONUNBUFFERED=1
USER peat
VOLUME /var/lib/peat
ENTRYPOINT ["peat"]
CMD ["up", "--dev"]
