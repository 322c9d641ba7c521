import { defineStore } from "pinia";
import { computed, ref } from "vue";

import { onRefusedToken } from "../api/client";
import { asProblem, problemOf, unreachable, type Problem } from "../api/problem";
import { forget, keep, project, token } from "./token";

export const useSession = defineStore("session", () => {
  const expired = ref(false);
  const signedIn = computed(() => token.value !== "");

  onRefusedToken(() => {
    if (!signedIn.value) return;
    forget();
    expired.value = true;
  });

  /** The problem that kept the visitor out; null when the token is right. */
  async function signIn(given: string, inProject: string): Promise<Problem | null> {
    try {
      const answer = await fetch("/v1/algorithms", { headers: { Authorization: `Bearer ${given}` } }).catch(() => {
        throw unreachable();
      });
      if (!answer.ok) throw problemOf(answer.status, await answer.json().catch(() => null));
    } catch (error) {
      return asProblem(error);
    }
    keep(given, inProject);
    expired.value = false;
    return null;
  }

  function signOut(): void {
    forget();
    expired.value = false;
  }

  return { expired, signedIn, project, signIn, signOut };
});
