#!/usr/bin/env bash
# Measures the start of the lab, the size of the program, and memory. Prints a table, then the same as one line of JSON.
set -euo pipefail
cd "$(dirname "$0")/.."
./tools/deps.sh nginx-light
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o "$dir/postern" ./cmd/postern
go build -o "$dir/bench" ./bench
"$dir/bench" figures -postern "$dir/postern" "$@"
