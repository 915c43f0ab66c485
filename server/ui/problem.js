// A problem of a gateway: what it is, and what to do about it.

import { h } from "./dom.js";

/** The problem in words, and its remedy as it is typed on the gateway. */
export function problemInWords(problem) {
  return problem.remedy ? [`${problem.words}. `, h("code", { class: "remedy" }, problem.remedy)] : problem.words;
}
