import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex } from "@noble/hashes/utils.js";

/** What comes back: bytes hashed so far, then the hash, or why there is none (the file was changed or taken away). */
export type Hashed = { done: number } | { sha256: string } | { failed: string };

/** The browser's own digest takes a whole file in memory; this one a piece at a time. */
async function hash(file: File): Promise<void> {
  const digest = sha256.create();
  const reader = file.stream().getReader();
  let done = 0;
  let told = 0;
  for (;;) {
    const piece = await reader.read();
    if (piece.done) break;
    digest.update(piece.value);
    done += piece.value.length;
    if (done - told >= 4 * 1024 * 1024) {
      told = done;
      postMessage({ done } satisfies Hashed);
    }
  }
  postMessage({ sha256: bytesToHex(digest.digest()) } satisfies Hashed);
}

addEventListener("message", (event: MessageEvent<File>) => {
  hash(event.data).catch((error: unknown) => postMessage({ failed: String(error) } satisfies Hashed));
});
