#!/usr/bin/env bash
# Shows what the server does in one screen: starts it on a temporary folder and a free port, uploads inputs/*.csv, asks
# for sums over both formats, lists the parts, loads the key/value store, asks for one job of each kind over HTTP,
# stops it. It removes all its files, even if it fails.
#
#   scripts/demo.sh [path of tally]
set -euo pipefail
cd "$(dirname "$0")/.."
binary=$(realpath "${1:-target/debug/tally}")
[ -x "$binary" ] || { echo "demo: $binary is missing: run make demo" >&2; exit 1; }

work=$(mktemp -d "${TMPDIR:-/tmp}/tally-demo.XXXXXX")
server=
clean_up() {
  local status=$?
  if [ -n "$server" ]; then
    kill "$server" 2>/dev/null && wait "$server" || true
  fi
  if [ "$status" -ne 0 ] && [ -s "$work/log" ]; then
    echo "demo: failed; the end of the server's log:" >&2
    tail -n 20 "$work/log" >&2
  fi
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# The commands below are printed as a user would type them, so `tally` must be this binary.
mkdir "$work/bin"
ln -s "$binary" "$work/bin/tally"
PATH="$work/bin:$PATH"
# The caller's settings must have no effect.
for name in "${!TALLY_@}"; do unset "$name"; done

say() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
run() {
  printf '$ %s\n' "$*"
  "$@"
}
[ -t 1 ] || say() { printf '\n# %s\n' "$*"; }

say 'a server on an empty folder and a free port'
mkfifo "$work/ready"
printf '$ tally serve --data DIR --grpc 127.0.0.1:0 --http 127.0.0.1:0 &\n'
tally serve --data "$work/data" --grpc 127.0.0.1:0 --http 127.0.0.1:0 >"$work/ready" 2>"$work/log" &
server=$!
exec 3<"$work/ready" # stays open: the server's standard output must not end in a closed pipe
IFS= read -r -t 60 ready <&3 || { echo 'demo: the server did not start' >&2; exit 1; }
printf '%s\n' "$ready"
address=${ready#ready: grpc }
export TALLY_SERVER=${address%%[,;]*} # for tally's client commands and the Python clients
http=${ready#*; http }
http=http://${http%%[,;]*} # for curl
printf 'console: %s/\n' "$http"

say 'each file becomes a part of one growing table'
run tally upload inputs/*.csv

say 'a sum over all parts, from the CSV files as they were sent'
run tally sum x --format csv
run tally sum z --format csv

say 'the same from the Parquet files, of which only that column is read'
run tally sum x --format parquet
run tally sum z --format parquet

say 'a column that no file has'
run tally sum w

say 'the parts of the table'
run tally parts

say 'the key/value store on the same port: totals, factorials and their cache, from 2 clients'
run tally load-numstore --clients 2 --requests 1000 --seed 1

# Polls a job until its state no longer matches, and prints it.
poll() {
  local url=$1 pattern=$2 answer
  for _ in {1..300}; do
    answer=$(curl --silent --show-error --fail "$url")
    [[ $answer =~ $pattern ]] || break
    sleep 0.1
  done
  printf '$ curl %s\n%s\n' "$url" "$answer"
}

if command -v curl >/dev/null; then
  say 'a job over the table: ask now, fetch the result later'
  question='{"question": "Percent of adults who engage in no leisure-time physical activity"}'
  printf "$ curl --data '%s' %s\n" "$question" "$http/api/best5"
  curl --silent --show-error --fail --data "$question" "$http/api/best5"
  echo
  poll "$http/api/get_results/job_id_1" '"running"'

  say 'a job over a file that is sent along: plays by song and date'
  tasks=$http/api/v1/file-processing/tasks/
  printf '$ curl --form file=@inputs/plays.csv %s\n' "$tasks"
  answer=$(curl --silent --show-error --fail --form file=@inputs/plays.csv "$tasks")
  echo "$answer"
  next=${answer##*\"next\":\"}
  poll "$http${next%%\"*}" 'QUEUED|IN_PROGRESS'
  next=${next%/status*}/download
  printf '$ curl %s | head -n 4\n' "$http$next"
  curl --silent --show-error --fail --output "$work/results.csv" "$http$next"
  head -n 4 "$work/results.csv"
else
  say 'jobs over HTTP are not shown: this machine has no curl'
fi

# The console can be opened meanwhile. Without a terminal there is nobody to wait for.
if [ -t 0 ] && [ -t 1 ]; then
  printf '\nThe table is in the console: %s/\nPress Enter to stop the server. ' "$http"
  read -r || true
fi

say 'the server stops'
printf '$ kill %s\n' "$server"
kill "$server"
wait "$server"
server=
echo 'It finished the running calls and ended with exit code 0. The temporary folder is removed, too.'
