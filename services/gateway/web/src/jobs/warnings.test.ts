import { expect, it } from "vitest";
import { createSSRApp } from "vue";
import { createI18n } from "vue-i18n";
import { renderToString } from "vue/server-renderer";

import type { JobWarning } from "../api/types";
import { en } from "../i18n/en";
import { zh } from "../i18n/zh";
import WarningNotes from "./WarningNotes.vue";

function shown(locale: "en" | "zh", ...warnings: Partial<JobWarning>[]): Promise<string> {
  const app = createSSRApp(WarningNotes, { warnings });
  return renderToString(app.use(createI18n({ legacy: false, locale, messages: { en, zh } })));
}

it("shows a warning with what to do, how often and in which steps", async () => {
  const found = { reason: "GRADIENT_ZERO", severity: "SEVERITY_WARNING" as const, message: "it was <0>", remedy: "look", count: "8", firstStep: "2", lastStep: "9", attempt: 2 };
  const page = await shown("en", found);
  for (const part of ["warn note", "it was &lt;0&gt;", "What to do: look", "GRADIENT_ZERO", "8 times", "steps 2 to 9", "Attempt 2"]) expect(page).toContain(part);
  expect(await shown("zh", found)).toContain("处理方法： look");
});

it("shows nothing where there is nothing, and no more of a warning than it has", async () => {
  expect(await shown("en")).not.toContain("<ul");
  const page = await shown("en", { reason: "WEIGHTS_UNUSABLE", severity: "SEVERITY_ERROR", message: "m", remedy: "", count: "1", firstStep: "0", lastStep: "0", attempt: 1 });
  expect(page).toContain("bad note");
  for (const part of ["What to do", "times", "steps", "Attempt"]) expect(page).not.toContain(part);
});
