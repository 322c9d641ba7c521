import { onScopeDispose, ref, shallowRef, watch, type Ref, type ShallowRef } from "vue";

import { asProblem, type Problem } from "../api/problem";
import type { Checkpoint, JobEvent, TrainingJob } from "../api/types";
import type { StreamState } from "../shared/follow";
import { usePolling } from "../shared/usePolling";
import { useStream } from "../shared/useStream";
import { getJob, hasEnded, listCheckpoints, streamPath } from "./api";

export interface FollowedJob {
  job: ShallowRef<TrainingJob | null>;
  checkpoints: ShallowRef<Checkpoint[]>;
  /** Why there is no job to show. */
  problem: Ref<Problem | null>;
  state: Ref<StreamState>;
  /** Take a job that came as the answer to a call. */
  take: (job: TrainingJob) => void;
  takeCheckpoint: (checkpoint: Checkpoint) => void;
}

/** A job as it is now: each change of state and each checkpoint by stream; phase and step, which move without an event,
 * by asking. */
export function useJob(id: string): FollowedJob {
  const job = shallowRef<TrainingJob | null>(null);
  const checkpoints = shallowRef<Checkpoint[]>([]);
  const problem = shallowRef<Problem | null>(null);

  function take(newer: TrainingJob): void {
    const known = job.value;
    const older = known !== null && Number(newer.sequence) < Number(known.sequence);
    if (!older) job.value = newer;
  }

  function takeCheckpoint(changed: Checkpoint): void {
    const others = checkpoints.value.filter((one) => one.name !== changed.name);
    checkpoints.value = [...others, changed].sort((a, b) => Number(b.step) - Number(a.step));
  }

  const events = useStream<JobEvent>(streamPath(id, "streamEvents"), (event) => {
    if (event.trainingJob) take(event.trainingJob);
    if (event.checkpoint) takeCheckpoint(event.checkpoint);
    // The job has all of them, counted.
    if (event.warning) void polling.refresh();
  });
  const polling = usePolling(
    () => getJob(id),
    (last) => (last !== null && hasEnded(last) ? 0 : 1500),
  );
  watch(polling.data, (found) => found && take(found));
  watch([polling.problem, events.problem], ([asked, streamed]) => {
    const lasting = [asked, streamed].find((one) => one && !one.passing);
    problem.value = lasting ?? (job.value === null ? (asked ?? null) : null);
  });

  let living = true;
  onScopeDispose(() => (living = false));
  // Events tell of a checkpoint as it was then; the list tells how it is now.
  void listCheckpoints(id).then(
    (found) => living && found.forEach(takeCheckpoint),
    (error) => living && (problem.value ??= asProblem(error)),
  );

  // The state that the visitor sees is that of the connection: asking fails before a quiet stream is noticed to be dead.
  const state = ref<StreamState>("connecting");
  watch([events.state, polling.stale], ([streamed, stale]) => {
    state.value = stale && streamed !== "failed" && streamed !== "ended" ? "reconnecting" : streamed;
  });
  return { job, checkpoints, problem, state, take, takeCheckpoint };
}
