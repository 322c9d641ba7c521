// Colours and cursor movements of a terminal (ECMA-48).
const CONTROL = /\u001b\[[0-9;?]*[ -/]*[@-~]|\u001b\][^\u0007\u001b]*(?:\u0007|\u001b\\)|[\u0000-\u0008\u000b-\u001f\u007f]/g;

/** A line without what only a terminal understands. */
export function clean(text: string): string {
  return text.replace(CONTROL, "");
}
