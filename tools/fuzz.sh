#!/usr/bin/env bash
# Runs every fuzz target of the module for the time given (default 5s), one after the other.
set -euo pipefail
time=${1:-5s}
grep -rlE '^func Fuzz' --include='*_test.go' . | sort | while read -r file; do
  dir=$(dirname "$file")
  grep -oE '^func Fuzz[A-Za-z0-9_]+' "$file" | sed 's/^func //' | while read -r target; do
    echo "fuzz $dir $target"
    if ! out=$(go test "$dir" -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 10x 2>&1); then
      # Go's engine reports its own end of time as a failure when an input is under way just then. A real finding names the failing input.
      if grep -q 'Failing input' <<<"$out" || ! grep -q 'context deadline exceeded' <<<"$out"; then
        echo "$out"
        exit 1
      fi
    fi
    grep -E '^fuzz: elapsed' <<<"$out" | tail -n 1
  done
done
