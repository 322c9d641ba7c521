import SwaggerUi from "swagger-ui-dist/swagger-ui-es-bundle.js";
import "swagger-ui-dist/swagger-ui.css";
import "./docs.css";

import { token } from "../session/token";

const dark = localStorage.getItem("rlhf.theme") ?? "auto";
const isDark = dark === "dark" || (dark === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
document.documentElement.classList.toggle("dark-mode", isDark);

const ui = SwaggerUi({
  dom_id: "#docs",
  url: "/openapi.json",
  deepLinking: true,
  docExpansion: "list",
  filter: true,
  tryItOutEnabled: true,
  // The validator is another site.
  validatorUrl: null,
  // A visitor who is signed in on the other pages of this tab is so here.
  onComplete: () => token.value && ui.preauthorizeApiKey("bearer", token.value),
});
