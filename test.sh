#!/usr/bin/env bash
# Runs every check of the project, as the pipeline does, and installs what they need first.
# `./test.sh lint` runs the jobs whose label contains "lint".
set -euo pipefail
cd "$(dirname "$0")"
.buildkite/install
exec .buildkite/run "$@"
