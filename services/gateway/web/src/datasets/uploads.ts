import { defineStore } from "pinia";
import { computed, ref, shallowRef } from "vue";

import { asProblem, type Problem } from "../api/problem";
import type { Upload, UploadChange } from "../api/types";
import { authorization } from "../session/token";
import { follow } from "../shared/follow";
import { announce, createDataset, deleteUpload, getDataset } from "./api";
import { hashFile, sendFile } from "./sending";

export type Phase = "idle" | "hashing" | "sending" | "validating" | "paused" | "done" | "failed";

/** The upload at hand. It goes on while other pages are looked at. */
export const useUpload = defineStore("upload", () => {
  const phase = ref<Phase>("idle");
  const file = shallowRef<File | null>(null);
  const dataset = ref("");
  /** Bytes hashed or sent. */
  const done = ref(0);
  const upload = shallowRef<Upload | null>(null);
  const problem = shallowRef<Problem | null>(null);
  const running = computed(() => phase.value === "hashing" || phase.value === "sending" || phase.value === "validating");
  let controller = new AbortController();

  /** `format` is that of a dataset that is to be made; empty where it exists. */
  async function start(into: string, format: string, chosen: File): Promise<void> {
    reset();
    file.value = chosen;
    dataset.value = into;
    try {
      if (format !== "") await createDataset(into, format);
    } catch (error) {
      problem.value = asProblem(error);
      phase.value = "failed";
      return;
    }
    await go();
  }

  /** From where it stands: a file that was hashed before is hashed again, since it may have been changed. */
  async function go(): Promise<void> {
    const chosen = file.value;
    if (chosen === null) return;
    controller = new AbortController();
    const { signal } = controller;
    problem.value = null;
    const progress = (bytes: number): void => void (done.value = bytes);
    try {
      await getDataset(dataset.value);
      phase.value = "hashing";
      done.value = 0;
      const sha256 = await hashFile(chosen, signal, progress);
      upload.value = await announce(dataset.value, chosen, sha256);
      phase.value = "sending";
      done.value = Number(upload.value.receivedBytes);
      if (upload.value.state === "STATE_RECEIVING") upload.value = await sendFile(upload.value, chosen, signal, progress);
      phase.value = "validating";
      await watchChecks(upload.value, signal);
    } catch (error) {
      if (signal.aborted) return;
      problem.value = asProblem(error);
      phase.value = "failed";
    }
  }

  async function watchChecks(from: Upload, signal: AbortSignal): Promise<void> {
    await follow<UploadChange>({
      path: `/v1/${from.name}:streamEvents`,
      headers: authorization,
      signal,
      onMessage: (message) => message.upload && (upload.value = message.upload),
      onState: (state, streamProblem) => state === "failed" && (problem.value = streamProblem),
    });
    if (!signal.aborted) phase.value = upload.value?.state === "STATE_SUCCEEDED" ? "done" : "failed";
  }

  /** What has arrived stays; `go` goes on. */
  function pause(): void {
    phase.value = "paused";
    controller.abort();
  }

  /** Throw away what has arrived. */
  async function cancel(): Promise<void> {
    const name = phase.value === "validating" ? "" : upload.value?.name;
    reset();
    if (name) await deleteUpload(name).catch(() => undefined);
  }

  function reset(): void {
    controller.abort();
    phase.value = "idle";
    file.value = null;
    upload.value = null;
    problem.value = null;
    done.value = 0;
  }

  addEventListener("beforeunload", (event) => {
    if (phase.value === "hashing" || phase.value === "sending") event.preventDefault();
  });
  return { phase, file, dataset, done, upload, problem, running, start, go, pause, cancel, reset };
});
