import { ref, watchEffect } from "vue";

export type Theme = "auto" | "light" | "dark";
const THEME = "rlhf.theme";
const systemDark = matchMedia("(prefers-color-scheme: dark)");

function stored(): Theme {
  const value = localStorage.getItem(THEME);
  return value === "light" || value === "dark" ? value : "auto";
}

export const theme = ref<Theme>(stored());
/** What is shown; charts are drawn anew when it changes. */
export const dark = ref(false);

function settle(): void {
  dark.value = theme.value === "dark" || (theme.value === "auto" && systemDark.matches);
}

systemDark.addEventListener("change", settle);
watchEffect(() => {
  settle();
  if (theme.value === "auto") delete document.documentElement.dataset["theme"];
  else document.documentElement.dataset["theme"] = theme.value;
  localStorage.setItem(THEME, theme.value);
});

/** A colour of base.css, as the theme at hand has it. */
export function colour(name: string): string {
  const probe = document.createElement("span");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}
