/** Numbers, sizes and times as a person reads them. */

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** Of bytes, which come as a number or as int64 text. */
export function size(bytes: number | string | undefined): string {
  let value = Number(bytes ?? 0);
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? value : value.toFixed(value < 10 ? 2 : 1)} ${UNITS[unit]}`;
}

/** Text whose lines were broken for a terminal: only its paragraphs stay apart. */
export function paragraphs(text: string): string {
  return text.replace(/([^\n])\n(?!\n)/g, "$1 ");
}

/** `12,345`. */
export function count(value: number | string | undefined): string {
  return Number(value ?? 0).toLocaleString("en-US");
}

/** `1.2 M` for a number of parameters. */
export function compact(value: number | string | undefined): string {
  return new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 2 }).format(Number(value ?? 0));
}

/** Six significant digits at most; `NaN` and infinities by name. */
export function metric(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e7)) return value.toExponential(3);
  return String(Number(value.toPrecision(6)));
}

/** `2 h 05 min` between two moments; up to now where the second has not come. */
export function took(start: string | undefined, end: string | undefined, now: number): string {
  if (!start) return "";
  const seconds = Math.max(0, Math.round(((end ? Date.parse(end) : now) - Date.parse(start)) / 1000));
  const two = (value: number): string => String(value).padStart(2, "0");
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${two(seconds % 60)} s`;
  const hours = Math.floor(seconds / 3600);
  if (hours < 48) return `${hours} h ${two(Math.floor((seconds % 3600) / 60))} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** In the visitor's own time zone and language. */
export function moment(time: string | undefined, locale: string): string {
  return time ? new Date(time).toLocaleString(locale, { dateStyle: "medium", timeStyle: "medium" }) : "";
}

const SPANS: readonly [Intl.RelativeTimeFormatUnit, number][] = [
  ["day", 86_400],
  ["hour", 3600],
  ["minute", 60],
];

/** `3 minutes ago`. */
export function ago(time: string | undefined, locale: string, now: number): string {
  if (!time) return "";
  const seconds = Math.round((Date.parse(time) - now) / 1000);
  const words = new Intl.RelativeTimeFormat(locale, { numeric: "auto" });
  for (const [unit, length] of SPANS) {
    if (Math.abs(seconds) >= length) return words.format(Math.round(seconds / length), unit);
  }
  return words.format(Math.min(0, seconds), "second");
}
