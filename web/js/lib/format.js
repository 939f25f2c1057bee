/** Numbers, sizes and times as text. Pure functions. */

const MINUS = '\u2212';
const SIZE_UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];

/** The digits of an integer, with a comma before each group of three. */
function group(digits) {
  return digits.replace(/\B(?=(\d{3})+$)/g, ',');
}

/**
 * An integer or a decimal, exactly, with its thousands separated.
 * @param {number|bigint|string|null|undefined} value totals beyond 53 bits are strings of digits
 */
export function number(value) {
  if (value === null || value === undefined || value === '') return '–';
  const text = typeof value === 'number' ? plain(value) : String(value);
  const match = /^(-?)(\d+)(\.\d+)?$/.exec(text);
  if (!match) return text;
  return (match[1] ? MINUS : '') + group(match[2]) + (match[3] ?? '');
}

function plain(value) {
  return Number.isInteger(value) ? BigInt(value).toString() : String(value);
}

/** A number with a fixed count of decimals, for columns that are compared by eye. */
export function decimal(value, digits = 2) {
  return Number.isFinite(value) ? number(value.toFixed(digits)) : '–';
}

/** A total as a number, for the length of bars: one of more than 53 bits is rounded. */
export function approximate(value) {
  return Number(value);
}

/** A size as figure and unit: three significant digits, binary units. */
export function size(bytes) {
  if (bytes === null || bytes === undefined || !Number.isFinite(Number(bytes))) return { figure: '–', unit: '' };
  let value = Number(bytes);
  let unit = 0;
  while (Math.abs(value) >= 1023.5 && unit < SIZE_UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return { figure: unit === 0 ? number(Math.round(value)) : significant(value), unit: SIZE_UNITS[unit] };
}

function significant(value) {
  const magnitude = Math.abs(value);
  return value.toFixed(magnitude >= 99.95 ? 0 : magnitude >= 9.995 ? 1 : 2);
}

export function sizeText(bytes) {
  const { figure, unit } = size(bytes);
  return unit ? `${figure} ${unit}` : figure;
}

/** A rate in bytes a second. */
export function rateText(bytesPerSecond) {
  return `${sizeText(bytesPerSecond)}/s`;
}

/** A short duration from milliseconds: 0.42 ms, 12.3 ms, 4.56 s, 3 min 20 s. */
export function durationText(ms) {
  if (!Number.isFinite(ms)) return '–';
  if (ms < 999.5) return `${significant(ms)} ms`;
  const seconds = ms / 1000;
  if (seconds < 59.95) return `${significant(seconds)} s`;
  const whole = Math.round(seconds);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${number(Math.floor(whole / 3600))} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** A time left, in whole seconds or minutes so that it does not flicker. */
export function leftText(seconds) {
  if (!Number.isFinite(seconds)) return '';
  if (seconds < 1) return 'less than 1 s left';
  if (seconds < 60) return `${Math.ceil(seconds)} s left`;
  if (seconds < 5400) return `${Math.ceil(seconds / 60)} min left`;
  return `${Math.ceil(seconds / 3600)} h left`;
}

/** How many times `larger` is `smaller`, for example "3.2". */
export function ratio(larger, smaller) {
  if (!(larger > 0) || !(smaller > 0)) return '–';
  const value = larger / smaller;
  if (value >= 99.5) return number(Math.round(value));
  return value >= 0.95 ? value.toFixed(1) : String(Number(value.toPrecision(1)));
}

/** `12 rows`, `1 row`. */
export function count(value, singular, plural = `${singular}s`) {
  return `${number(value)} ${String(value) === '1' ? singular : plural}`;
}

const two = (value) => String(value).padStart(2, '0');

/** A time in the reader's zone: 2026-11-30 17:42:31. */
export function timeText(rfc3339) {
  const time = new Date(rfc3339 ?? NaN);
  if (Number.isNaN(time.getTime())) return '–';
  const date = `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())}`;
  return `${date} ${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`;
}

/** How long ago a time is: 5 s ago, 3 min ago, 4 h ago, 12 days ago. */
export function agoText(rfc3339, now = Date.now()) {
  const seconds = Math.max(0, Math.round((now - Date.parse(rfc3339 ?? '')) / 1000));
  if (!Number.isFinite(seconds)) return '–';
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h ago`;
  return `${number(Math.floor(seconds / 86400))} days ago`;
}

/** A text cut to `max` characters, without splitting a character in two. */
export function cut(text, max) {
  const characters = Array.from(text.slice(0, max * 2 + 2));
  return characters.length > max ? `${characters.slice(0, max - 1).join('')}…` : text;
}

/** Control and direction characters as visible symbols, so that a name cannot change how the text around it reads. */
export function visible(text) {
  return text.replace(/[\u0000-\u001f\u007f]/g, (c) => String.fromCodePoint(c === '\u007f' ? 0x2421 : 0x2400 + c.charCodeAt(0)))
    .replace(/[\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c]/g, '\ufffd');
}
