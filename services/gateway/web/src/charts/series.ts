/** The points of one metric of one job, by attempt. */

export interface Point {
  metric: string;
  step: number;
  value: number;
  attempt: number;
}

/** Steps rise strictly; `values[i]` belongs to `steps[i]`. */
export interface Line {
  steps: number[];
  values: number[];
}

export class Series {
  private readonly attempts = new Map<number, Line>();
  private merged: Line | null = null;

  add(step: number, value: number, attempt: number): void {
    let line = this.attempts.get(attempt);
    if (line === undefined) this.attempts.set(attempt, (line = { steps: [], values: [] }));
    this.merged = null;
    const last = line.steps.length - 1;
    if (last < 0 || step > (line.steps[last] as number)) {
      line.steps.push(step);
      line.values.push(value);
      return;
    }
    const at = lowerBound(line.steps, step);
    if (line.steps[at] === step) line.values[at] = value;
    else {
      line.steps.splice(at, 0, step);
      line.values.splice(at, 0, value);
    }
  }

  /** Attempts that reported this metric, in order. */
  get attemptNumbers(): number[] {
    return [...this.attempts.keys()].sort((a, b) => a - b);
  }

  ofAttempt(attempt: number): Line {
    return this.attempts.get(attempt) ?? { steps: [], values: [] };
  }

  /** For each step the value of the highest attempt that reported it. */
  effective(): Line {
    if (this.merged === null) {
      const numbers = this.attemptNumbers;
      this.merged = numbers.map((number) => this.ofAttempt(number)).reduce(overlay, { steps: [], values: [] });
    }
    return this.merged;
  }
}

/** Both lines in one; where both have a step, `upper` counts. */
function overlay(lower: Line, upper: Line): Line {
  if (lower.steps.length === 0) return upper;
  const steps: number[] = [];
  const values: number[] = [];
  let i = 0;
  let j = 0;
  while (i < lower.steps.length || j < upper.steps.length) {
    const a = lower.steps[i] ?? Infinity;
    const b = upper.steps[j] ?? Infinity;
    if (a < b) {
      steps.push(a);
      values.push(lower.values[i] as number);
    } else {
      steps.push(b);
      values.push(upper.values[j++] as number);
    }
    if (a <= b) i += 1;
  }
  return { steps, values };
}

/** Index of the first of `sorted` that is at least `value`. */
export function lowerBound(sorted: readonly number[], value: number): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((sorted[middle] as number) < value) low = middle + 1;
    else high = middle;
  }
  return low;
}
