import { createI18n } from "vue-i18n";

import { en } from "./en";
import { zh } from "./zh";

export const LOCALES = { en: "English", zh: "中文" } as const;
const LOCALE = "rlhf.locale";

function first(): keyof typeof LOCALES {
  const wanted = localStorage.getItem(LOCALE) ?? navigator.language;
  return wanted.startsWith("zh") ? "zh" : "en";
}

export const i18n = createI18n({ legacy: false, locale: first(), fallbackLocale: "en", messages: { en, zh } });

export function setLocale(locale: string): void {
  if (!(locale in LOCALES)) return;
  i18n.global.locale.value = locale as keyof typeof LOCALES;
  localStorage.setItem(LOCALE, locale);
  document.documentElement.lang = locale === "zh" ? "zh-CN" : "en";
}

setLocale(i18n.global.locale.value);
