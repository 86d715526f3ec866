#!/usr/bin/env bash
# Reruns the published figures: the way of a request beside other proxies, then the figures. Arguments go to `bench path`.
set -euo pipefail
cd "$(dirname "$0")/.."
./tools/deps.sh nginx-light
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o "$dir/postern" ./cmd/postern
go build -o "$dir/bench" ./bench
"$dir/bench" path -postern "$dir/postern" "$@"
echo
"$dir/bench" figures -postern "$dir/postern"
