/** One server-sent event. `id` is empty where the event had none. */
export interface ServerEvent {
  event: string;
  data: string;
  id: string;
}

/** Reads the text of a `text/event-stream` piece by piece (HTML standard, section 9.2.6). Comment lines are signs of
 * life without content; an event that is not ended by a blank line is not an event. */
export class SseParser {
  private rest = "";
  private data: string[] = [];
  private event = "";
  private id = "";
  private afterReturn = false;

  feed(piece: string): ServerEvent[] {
    const found: ServerEvent[] = [];
    // A CR at the end of one piece and the LF at the start of the next are one line end.
    let text = this.rest + (this.afterReturn && piece.startsWith("\n") ? piece.slice(1) : piece);
    if (piece !== "") this.afterReturn = piece.endsWith("\r");
    for (;;) {
      const end = /\r\n|\n|\r/.exec(text);
      if (end === null) break;
      this.line(text.slice(0, end.index), found);
      text = text.slice(end.index + end[0].length);
    }
    this.rest = text;
    return found;
  }

  private line(line: string, found: ServerEvent[]): void {
    if (line === "") {
      if (this.data.length > 0 || this.event !== "") {
        found.push({ event: this.event || "message", data: this.data.join("\n"), id: this.id });
      }
      this.data = [];
      this.event = "";
      this.id = "";
      return;
    }
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") this.data.push(value);
    else if (name === "event") this.event = value;
    else if (name === "id") this.id = value;
  }
}
