/** Questions as commands for other programs. Names are quoted, so that a command is safe to paste whatever a column is called. */

/** A word for a POSIX shell. */
export function shell(text) {
  const word = String(text);
  return /^[A-Za-z0-9_./:=@%+,-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

/** A Python string. JSON's escapes are Python's as well. */
export const python = (text) => JSON.stringify(String(text));

/** A list of columns for the command line: one record of CSV. */
export function columnList(names) {
  return names.map((name) => (/[",\r\n]|^\s|\s$/.test(name) || name === '' ? `"${name.replaceAll('"', '""')}"` : name)).join(',');
}

const curlGet = (origin, target) => `curl -s ${shell(origin + target)}`;

function pythonGet(origin, target, last = 'print(json.load(answer))') {
  return `import json, urllib.request\n\nwith urllib.request.urlopen(${python(origin + target)}) as answer:\n    ${last}`;
}

function grpcurl(host, method, message) {
  const data = message === null ? '' : `-d ${shell(JSON.stringify(message))} `;
  return `grpcurl -plaintext ${data}${host}:5440 ${method}`;
}

/**
 * All forms of one question.
 * @param {{origin: string, host: string}} server
 * @param {{path: string, isText?: boolean, grpc?: [string, object|null], tally?: string, none?: string}} question
 *   `none` says why a form is missing
 */
export function getCommands({ origin, host }, { path, isText = false, grpc, tally, none }) {
  return {
    curl: curlGet(origin, path),
    Python: pythonGet(origin, path, isText ? 'print(answer.read().decode())' : undefined),
    grpcurl: grpc ? grpcurl(host, ...grpc) : { none },
    tally: tally ? `tally ${tally}` : { none },
  };
}

/** An upload with its options. */
export function uploadCommands({ origin, host }, path, options) {
  const url = origin + path;
  const flags = Object.entries(options).flatMap(([name, value]) =>
    [value].flat().map((item) => (item === true || item === 'true' ? `--${name.replaceAll('_', '-')}` : `--${name.replaceAll('_', '-')} ${shell(item)}`)));
  const message = { data: 'BASE64' };
  const first = Object.keys(options).length > 0 ? `${JSON.stringify({ options: grpcOptions(options) })} ` : '';
  return {
    curl: `curl -s ${shell(url)} --data-binary @file.csv`,
    Python: `import json, urllib.request\n\nwith open("file.csv", "rb") as file:\n    request = urllib.request.Request(${python(url)}, data=file.read(), headers={"Content-Type": "text/csv"})\nwith urllib.request.urlopen(request) as answer:\n    print(json.load(answer))`,
    grpcurl: `printf '%s{"data":"%s"}' ${shell(first)} "$(base64 < file.csv | tr -d '\\n')" |\n  grpcurl -plaintext -d @ ${host}:5440 tally.v1.Tally/Upload`,
    tally: ['tally upload', ...flags, 'file.csv'].join(' '),
    message,
  };
}

function grpcOptions(options) {
  return Object.fromEntries(Object.entries(options).map(([name, value]) => {
    if (name === 'null') return [name, [value].flat()];
    return [name, value === 'true' ? true : value];
  }));
}

/** A statistic: a job that is asked for and then fetched. */
export function statisticCommands({ origin }, kind, body) {
  const url = `${origin}/api/${kind}`;
  const none = 'Statistics are jobs over HTTP: there is no such gRPC call or command.';
  return {
    curl: `job=$(curl -s ${shell(url)} -d ${shell(JSON.stringify(body))} | cut -d'"' -f4)\ncurl -s ${shell(`${origin}/api/get_results/`)}"$job"   # again while it says running`,
    Python: `import json, time, urllib.request\n\ndef call(url, body=None):\n    with urllib.request.urlopen(url, data=body) as answer:\n        return json.load(answer)\n\njob = call(${python(url)}, json.dumps(${pythonDict(body)}).encode())["job_id"]\nwhile (result := call(${python(`${origin}/api/get_results/`)} + job))["status"] == "running":\n    time.sleep(0.2)\nprint(result)`,
    grpcurl: { none },
    tally: { none },
  };
}

function pythonDict(body) {
  return `{${Object.entries(body).map(([key, value]) => `${python(key)}: ${python(value)}`).join(', ')}}`;
}
