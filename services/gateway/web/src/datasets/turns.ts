import { isRecord } from "../api/problem";

export interface Turn {
  role: string;
  content: string;
}

/** One column of a row: a conversation, or a value that is none. */
export interface Part {
  name: string;
  turns: Turn[] | null;
  text: string;
}

const ORDER = ["messages", "prompt", "chosen", "rejected", "answer", "metadata"];

/** A canonical row of any format, in the order in which it is read. */
export function partsOf(value: Record<string, unknown>): Part[] {
  const place = (name: string): number => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length);
  return Object.entries(value)
    .filter(([, content]) => content !== null && content !== undefined)
    .sort(([a], [b]) => place(a) - place(b) || a.localeCompare(b))
    .map(([name, content]) => ({ name, turns: turnsOf(content), text: typeof content === "string" ? content : JSON.stringify(content, null, 2) }));
}

function turnsOf(value: unknown): Turn[] | null {
  if (!Array.isArray(value) || value.length === 0) return null;
  const turns = value.map((one) => (isRecord(one) && typeof one["role"] === "string" && typeof one["content"] === "string" ? { role: one["role"], content: one["content"] } : null));
  return turns.every((turn) => turn !== null) ? turns : null;
}
