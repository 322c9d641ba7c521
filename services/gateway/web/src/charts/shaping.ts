/** What is done to a line before it is drawn. All of it pure: a line in, a line out. */

import { lowerBound, type Line } from "./series";

/** More points than this are not seen on any screen. */
export const MAX_POINTS = 5000;

/** The part from `from` to `to`, with one point beyond either end so that the curve leaves the picture. */
export function window(line: Line, from: number, to: number): Line {
  const start = Math.max(0, lowerBound(line.steps, from) - 1);
  const end = Math.min(line.steps.length, lowerBound(line.steps, to) + 2);
  return { steps: line.steps.slice(start, end), values: line.values.slice(start, end) };
}

/** At most `limit` points: of each of equally many points the lowest and the highest, in order, so that no spike is
 * lost; a NaN or an infinity is kept as one of them. First and last point stay. */
export function downsample(line: Line, limit: number = MAX_POINTS): Line {
  const { steps, values } = line;
  const total = steps.length;
  if (total <= limit || limit < 4) return line;
  const buckets = Math.floor((limit - 2) / 2);
  const kept: number[] = [0];
  for (let bucket = 0; bucket < buckets; bucket += 1) {
    const start = 1 + Math.floor((bucket * (total - 2)) / buckets);
    const end = 1 + Math.floor(((bucket + 1) * (total - 2)) / buckets);
    let low = start;
    let high = start;
    for (let i = start; i < end; i += 1) {
      const value = values[i] as number;
      if (!Number.isFinite(value)) {
        low = i;
        break;
      }
      if (value < (values[low] as number)) low = i;
      if (value > (values[high] as number)) high = i;
    }
    kept.push(Math.min(low, high));
    if (low !== high) kept.push(Math.max(low, high));
  }
  kept.push(total - 1);
  return { steps: kept.map((i) => steps[i] as number), values: kept.map((i) => values[i] as number) };
}

/** Exponential moving average with weight `factor` of what came before, corrected for its start (as Adam's moments
 * are). Values that are not finite pass by it unchanged. */
export function smooth(line: Line, factor: number): Line {
  if (factor <= 0) return line;
  let average = 0;
  let weight = 0;
  const values = line.values.map((value) => {
    if (!Number.isFinite(value)) return value;
    average = factor * average + (1 - factor) * value;
    weight = factor * weight + (1 - factor);
    return average / weight;
  });
  return { steps: line.steps, values };
}

/** As a chart takes it: pairs, a gap where nothing can be drawn. */
export function pairs(line: Line, logarithmic: boolean): [number, number | null][] {
  return line.steps.map((step, i) => {
    const value = line.values[i] as number;
    return [step, Number.isFinite(value) && (!logarithmic || value > 0) ? value : null];
  });
}

/** The value at the greatest step that is at most `step`; undefined before the first. */
export function valueAt(line: Line, step: number): { step: number; value: number } | undefined {
  const at = lowerBound(line.steps, step);
  const index = line.steps[at] === step ? at : at - 1;
  return index < 0 ? undefined : { step: line.steps[index] as number, value: line.values[index] as number };
}

/** `job,metric,attempt,step,value`, a line a point. */
export function toCsv(rows: Iterable<readonly [string, string, number, Line]>): string {
  const lines = ["job,metric,attempt,step,value"];
  for (const [job, metric, attempt, line] of rows) {
    line.steps.forEach((step, i) => lines.push(`${quote(job)},${quote(metric)},${attempt},${step},${line.values[i]}`));
  }
  return lines.join("\n") + "\n";
}

function quote(text: string): string {
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
