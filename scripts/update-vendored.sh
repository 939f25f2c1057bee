#!/usr/bin/env bash
# Replaces a copy of an npm package by the files of another version, unmodified:
#
#   scripts/update-vendored.sh uplot [version]      the console's charts; look at them afterwards
#   scripts/update-vendored.sh axe-core [version]   what the browser tests check the console with
#
# Without a version it takes the newest.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v npm >/dev/null || { echo 'update-vendored: npm is missing' >&2; exit 1; }

package=${1:-}
case $package in
  uplot)
    target=web/vendor/uplot
    files=(dist/uPlot.iife.min.js dist/uPlot.min.css LICENSE)
    ;;
  axe-core)
    target=tests/python/vendor/axe-core
    files=(axe.min.js LICENSE LICENSE-3RD-PARTY.txt)
    ;;
  *)
    echo 'usage: scripts/update-vendored.sh uplot|axe-core [version]' >&2
    exit 2
    ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
archive=$(npm pack --silent --pack-destination "$work" "$package@${2:-latest}")
tar -xzf "$work/$archive" -C "$work"
version=$(sed -n 's/.*"version": "\([^"]*\)".*/\1/p' "$work/package/package.json" | head -n 1)

for file in "${files[@]}"; do
  cp "$work/package/$file" "$target/"
done
sed -i "s/^Version: .*/Version: $version/" "$target/README.md"
echo "$package $version is in $target"
