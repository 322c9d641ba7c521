import { ref } from "vue";

import { seen } from "./presence";

/** Now, moved on once a second: for ages and durations. */
export const now = ref(Date.now());
setInterval(() => {
  if (seen.value) now.value = Date.now();
}, 1000);
