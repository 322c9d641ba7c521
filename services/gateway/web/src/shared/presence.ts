import { ref, watch, type Ref } from "vue";

/** Whether the page is looked at. A browser opens some six connections to one server, of all its tabs together, and each
 * stream takes one: a page that nobody sees reads none. */
export const seen = ref(true);

if (typeof document !== "undefined") {
  seen.value = !document.hidden;
  document.addEventListener("visibilitychange", () => (seen.value = !document.hidden));
}

/** Resolves when `wanted` holds, or `signal` is aborted. */
export function whenWanted(wanted: Ref<boolean>, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (wanted.value || signal.aborted) return resolve();
    const done = (): void => {
      stop();
      signal.removeEventListener("abort", done);
      resolve();
    };
    const stop = watch(wanted, (holds) => holds && done());
    signal.addEventListener("abort", done);
  });
}
