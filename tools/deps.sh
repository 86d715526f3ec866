#!/usr/bin/env bash
# Installs the Debian packages named as arguments that are missing; PROGRAM=PACKAGE asks for the program, wherever it
# came from. As root or through sudo; otherwise it prints the line and stops.
set -euo pipefail
missing=()
for package in "$@"; do
  case $package in *=*) if command -v "${package%%=*}" >/dev/null; then continue; fi; package=${package#*=} ;; esac
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
line="apt-get update && apt-get install -y --no-install-recommends ${missing[*]}"
if [ "$(id -u)" = 0 ]; then run=(env DEBIAN_FRONTEND=noninteractive)
elif sudo -n true 2>/dev/null; then run=(sudo env DEBIAN_FRONTEND=noninteractive)
else
  echo "The tests need packages that are not installed. Run this as root, then make test again:" >&2
  echo "  $line" >&2
  exit 3
fi
echo "Installing: ${missing[*]}"
# A service that a package brings is for the machine's user to start; the tests start their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' | "${run[@]}" tee "$policy" >/dev/null
  "${run[@]}" chmod +x "$policy"
  trap '"${run[@]}" rm -f "$policy"' EXIT
fi
"${run[@]}" apt-get update -qq
"${run[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"
