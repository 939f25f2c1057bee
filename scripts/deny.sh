#!/usr/bin/env bash
# Checks the dependencies of the server and of cluster/ against deny.toml: bans, licences and sources, with cargo-deny, which is installed from
# the package registry into target/tools if cargo does not have it. That takes about a minute on two idle cores.
#
# Security advisories need a database, RustSec's advisory-db: TALLY_ADVISORY_DB names a folder that holds a copy of it.
# Without one they are not checked, and the last line of the output says so.
set -euo pipefail
cd "$(dirname "$0")/.."

VERSION=0.20.2 # it builds with our Rust; versions 0.13 to 0.19 include a git library that takes minutes to build

tools=$PWD/target/tools
export PATH="$tools/bin:$PATH"
if ! cargo deny --version >/dev/null 2>&1; then
  # Unoptimized: it runs for seconds, and is built in half the time.
  CARGO_PROFILE_DEV_DEBUG=0 cargo install cargo-deny --locked --debug --version "$VERSION" \
    --root "$tools" --target-dir "$tools/build"
  rm -rf "$tools/build"
fi

# deny CHECKS [FLAG]: checks both lock files.
deny() {
  local manifest
  for manifest in Cargo.toml cluster/Cargo.toml; do
    cargo deny --manifest-path "$manifest" --config deny.toml --locked "${@:2}" check --hide-inclusion-graph $1 # unquoted: one word for each check
  done
}

deny "bans licenses sources"

if [ -z "${TALLY_ADVISORY_DB:-}" ]; then
  echo "advisories: not checked, because TALLY_ADVISORY_DB is not set"
  exit 0
fi
[ -d "$TALLY_ADVISORY_DB/crates" ] || { echo "advisories: $TALLY_ADVISORY_DB has no folder named crates" >&2; exit 1; }
# deny.toml names this folder. cargo-deny derives the name from the URL of the usual database, and takes the time of
# FETCH_HEAD as the age of the database.
copy=target/tools/advisory-dbs/advisory-db-3157b0e258782691
rm -rf "$copy"
mkdir -p "$copy/.git"
ln -s "$(realpath "$TALLY_ADVISORY_DB")/crates" "$copy/crates"
touch -r "$TALLY_ADVISORY_DB/crates" "$copy/.git/FETCH_HEAD"
deny advisories --offline
echo "advisories: checked with $TALLY_ADVISORY_DB"
