import { Problem, problemOf, unreachable } from "../api/problem";
import type { Upload } from "../api/types";
import { authorization } from "../session/token";
import { pauseMs, sleep } from "../shared/backoff";
import { commit, getUpload } from "./api";
import type { Hashed } from "./hash.worker";

/** Lower-case hex, computed beside the page. Rejects with a Problem; with the signal's reason when it is aborted. */
export function hashFile(file: File, signal: AbortSignal, progress: (done: number) => void): Promise<string> {
  const worker = new Worker(new URL("./hash.worker.ts", import.meta.url), { type: "module" });
  return new Promise<string>((resolve, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
    worker.addEventListener("error", () => reject(new Problem(400, "UNKNOWN", "UNREADABLE_FILE", file.name)));
    worker.addEventListener("message", ({ data }: MessageEvent<Hashed>) => {
      if ("done" in data) progress(data.done);
      else if ("sha256" in data) resolve(data.sha256);
      else reject(new Problem(400, "UNKNOWN", "UNREADABLE_FILE", data.failed));
    });
    worker.postMessage(file);
  }).finally(() => worker.terminate());
}

/** Send what the server has not got, however often the connection breaks, and have it checked. */
export async function sendFile(upload: Upload, file: File, signal: AbortSignal, progress: (done: number) => void): Promise<Upload> {
  let offset = Number(upload.receivedBytes);
  let failures = 0;
  while (offset < file.size) {
    progress(offset);
    try {
      offset = Number((await put(upload.name, file, offset, signal, progress)).receivedBytes);
      failures = 0;
    } catch (error) {
      signal.throwIfAborted();
      const problem = error as Problem;
      // OUT_OF_RANGE and ABORTED say that it stands elsewhere than was thought: asked, it tells where.
      if (!problem.passing && problem.code !== "OUT_OF_RANGE" && problem.code !== "ABORTED") throw error;
      offset = await stored(upload.name, offset, signal, failures++);
    }
  }
  return commit(upload.name);
}

async function stored(name: string, known: number, signal: AbortSignal, failures: number): Promise<number> {
  await sleep(pauseMs(failures), signal);
  signal.throwIfAborted();
  try {
    return Number((await getUpload(name)).receivedBytes);
  } catch (error) {
    if (error instanceof Problem && error.passing) return known;
    throw error;
  }
}

/** XMLHttpRequest, because fetch does not tell how much of a body is sent. */
function put(name: string, file: File, offset: number, signal: AbortSignal, progress: (done: number) => void): Promise<Upload> {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const abort = (): void => request.abort();
    signal.addEventListener("abort", abort, { once: true });
    request.upload.onprogress = (event) => progress(offset + event.loaded);
    request.onabort = () => reject(signal.reason);
    request.onerror = () => reject(unreachable());
    request.onloadend = () => signal.removeEventListener("abort", abort);
    request.onload = () => {
      const document: unknown = parsed(request.responseText);
      if (request.status === 200) resolve(document as Upload);
      else reject(problemOf(request.status, document));
    };
    request.open("PUT", `/v1/${name}:write?offsetBytes=${offset}`);
    for (const [key, value] of Object.entries(authorization())) request.setRequestHeader(key, value);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.send(file.slice(offset));
  });
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
