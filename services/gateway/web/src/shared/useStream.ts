import { computed, onScopeDispose, ref, shallowRef, type Ref, type ShallowRef } from "vue";

import type { Problem } from "../api/problem";
import { authorization } from "../session/token";
import { follow, type StreamState } from "./follow";
import { seen } from "./presence";

export interface Stream {
  state: Ref<StreamState>;
  problem: ShallowRef<Problem | null>;
  stop: () => void;
}

/** Follow a stream for as long as the component that called this lives, while it is looked at and `active` holds. */
export function useStream<Message>(path: string, onMessage: (message: Message) => void, active?: Ref<boolean>): Stream {
  const state = ref<StreamState>("connecting");
  const problem = shallowRef<Problem | null>(null);
  const controller = new AbortController();
  void follow<Message>({
    path,
    headers: authorization,
    signal: controller.signal,
    wanted: computed(() => seen.value && (active?.value ?? true)),
    onMessage,
    onState: (newState, newProblem) => {
      state.value = newState;
      problem.value = newProblem;
    },
  });
  const stop = (): void => controller.abort();
  onScopeDispose(stop);
  return { state, problem, stop };
}
