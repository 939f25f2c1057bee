#!/usr/bin/env bash
# Replaces the console's copy of uPlot by that of its npm package, unmodified: `scripts/update-uplot.sh [version]`.
# Without a version it takes the newest. Look at the charts afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v npm >/dev/null || { echo 'update-uplot: npm is missing' >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
archive=$(npm pack --silent --pack-destination "$work" "uplot@${1:-latest}")
tar -xzf "$work/$archive" -C "$work"
version=$(sed -n 's/.*"version": "\([^"]*\)".*/\1/p' "$work/package/package.json")

target=web/vendor/uplot
for file in dist/uPlot.iife.min.js dist/uPlot.min.css LICENSE; do
  cp "$work/package/$file" "$target/"
done
sed -i "s/^Version: .*/Version: $version/" "$target/README.md"
echo "uPlot $version is in $target"
