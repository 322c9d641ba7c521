import { ref } from "vue";

const TOKEN = "rlhf.token";
const PROJECT = "rlhf.project";

/** Kept for as long as the tab: no other tab, no other site and no later visitor of this browser gets it. */
export const token = ref(sessionStorage.getItem(TOKEN) ?? "");
export const project = ref(sessionStorage.getItem(PROJECT) ?? "default");

export function keep(newToken: string, newProject: string): void {
  token.value = newToken;
  project.value = newProject;
  sessionStorage.setItem(TOKEN, newToken);
  sessionStorage.setItem(PROJECT, newProject);
}

export function forget(): void {
  token.value = "";
  sessionStorage.removeItem(TOKEN);
}

export function authorization(): Record<string, string> {
  return { Authorization: `Bearer ${token.value}` };
}
