/** One wrong field of a request: `training_job.params.learning_rate`. */
export interface Violation {
  field: string;
  description: string;
}

/** What the gateway answered instead of what was asked for: RFC 9457 problem details. */
export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    readonly reason: string,
    detail: string,
    readonly violations: readonly Violation[] = [],
    readonly requestId = "",
  ) {
    super(detail);
    this.name = "Problem";
  }

  /** Whether the same request may succeed later without being changed. */
  get passing(): boolean {
    return this.status === 0 || this.status === 429 || this.status === 499 || (this.status >= 500 && this.status !== 501);
  }
}

/** The connection failed before an answer came. */
export const UNREACHABLE = "UNREACHABLE";

export function unreachable(): Problem {
  return new Problem(0, "UNAVAILABLE", UNREACHABLE, "The mesh cannot be reached.");
}

/** `document` is the decoded body, whatever it is. */
export function problemOf(status: number, document: unknown): Problem {
  const body = isRecord(document) ? document : {};
  const text = (key: string): string => (typeof body[key] === "string" ? (body[key] as string) : "");
  return new Problem(
    status,
    text("code"),
    text("reason"),
    text("detail") || text("title") || `HTTP ${status}`,
    violationsOf(body["violations"]),
    text("request_id"),
  );
}

function violationsOf(value: unknown): Violation[] {
  if (!Array.isArray(value)) return [];
  return value.filter(isRecord).map((v) => ({ field: String(v["field"] ?? ""), description: String(v["description"] ?? "") }));
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** A Problem of anything that was thrown. */
export function asProblem(error: unknown): Problem {
  if (error instanceof Problem) return error;
  if (error instanceof TypeError) return unreachable();
  return new Problem(500, "UNKNOWN", "UNKNOWN", error instanceof Error ? error.message : String(error));
}
