// Changes of what a person was shown: two who change the same do not overwrite each other.

import { Problem, request, send } from "./api.js";

/** A coordinator may be a moment behind another one, and so may what it shows. */
const TRIES = 3;

/** An object, and the tag of the state in which it is. */
export async function tagged(path) {
  const response = await send("GET", path);
  return { object: await response.json(), tag: response.headers.get("etag") };
}

/** Somebody else changed a field that this person changed, too. */
export class Conflict extends Error {
  constructor(now, fields) {
    super("Somebody else changed the same.");
    this.now = now;
    this.fields = fields;
  }
}

/**
 * Sends the fields that a person changed of an object that they were shown. What others changed
 * meanwhile of other `fields` stays, and is given with the answer. Throws a Conflict when it is the
 * same field.
 */
export async function patch(path, query, known, wanted, fields) {
  let [now, others] = [known, []];
  for (let tries = 1; ; tries += 1) {
    try {
      return { answer: await request("PATCH", `${path}${query}`, wanted, now.tag), others };
    } catch (problem) {
      if (problem.status !== 412 || tries === TRIES) throw problem;
      now = await tagged(path);
      others = differences(fields, known.object, now.object);
      const same = others.filter(({ field, after }) => field in wanted && !equal(after, wanted[field]));
      if (same.length) throw new Conflict(now, same);
    }
  }
}

/** Removes an object that a person was shown; not if one of the fields is another meanwhile. */
export async function remove(path, known, fields) {
  let now = known;
  for (let tries = 1; ; tries += 1) {
    try {
      return await request("DELETE", path, undefined, now.tag);
    } catch (problem) {
      if (problem.status !== 412 || tries === TRIES) throw problem;
      now = await tagged(path);
      const others = differences(fields, known.object, now.object);
      if (others.length) throw new Problem({ title: problem.title, detail: `It is still there, because ${await told(known.object, others)}. Look at it, and try again.` });
    }
  }
}

/** The fields in which two states of an object differ. */
export function differences(fields, before, after) {
  return fields.filter((field) => !equal(before[field], after[field])).map((field) => ({ field, before: before[field], after: after[field] }));
}

/** What others changed, and who if the audit log has it: `carol changed the endpoint: none → …`. */
export async function told(object, changes) {
  const events = await request("GET", `/events?object=${object.id}&limit=20`).then((page) => page.items, () => []);
  return changes.map(({ field, before, after }) => {
    const event = events.find((event) => event.changes.some((change) => change.field === field));
    return `${event?.actor_name ?? "somebody"} changed the ${field}: ${words(before)} → ${words(after)}`;
  }).join("; ");
}

/** A value as people read it. */
export function words(value) {
  if (Array.isArray(value)) return value.map((item) => item.name ?? item).join(", ") || "none";
  if (value !== null && typeof value === "object") return words(Object.entries(value).map(([key, value]) => `${key}=${value}`));
  return String(value ?? "") || "none";
}

/** Whether two values mean the same; the order of lists and labels has no meaning. */
function equal(a, b) {
  const sorted = (value) => (Array.isArray(value) ? value.map((item) => JSON.stringify(item)).sort() : value && typeof value === "object" ? Object.entries(value).map((entry) => JSON.stringify(entry)).sort() : value ?? "");
  return JSON.stringify(sorted(a)) === JSON.stringify(sorted(b));
}
