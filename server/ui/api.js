// Requests to the coordinator, with the api token that is kept in this tab only.

const KEPT = "wattle-api-token";

export const token = {
  get: () => sessionStorage.getItem(KEPT),
  set: (text) => sessionStorage.setItem(KEPT, text),
  clear: () => sessionStorage.removeItem(KEPT),
};

/** What the coordinator says is wrong: RFC 9457 with a code, a field and what to do. */
export class Problem extends Error {
  constructor(body) {
    super(body.detail ?? body.title);
    Object.assign(this, body);
  }
}

/** Sends a request and gives its response; throws a Problem when it was not carried out. */
export async function send(method, path, { body, headers, signal } = {}) {
  const init = { method, signal, headers: { authorization: `Bearer ${token.get()}`, ...headers }, cache: "no-store" };
  if (body !== undefined) {
    init.body = JSON.stringify(body);
    init.headers["content-type"] = "application/json";
  }
  const response = await fetch(path, init);
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({ status: response.status, title: `The coordinator answered ${response.status}` }));
  throw new Problem(problem);
}

/** The body of an answer. With a tag, nothing is done unless the object has it still. */
export async function request(method, path, body, tag) {
  const response = await send(method, path, { body, headers: tag ? { "if-match": tag } : {} });
  return response.status === 204 ? null : response.json();
}

/** All items of a list. */
export async function all(path) {
  const items = [];
  let cursor = "";
  do {
    const page = await request("GET", `${path}${path.includes("?") ? "&" : "?"}limit=1000${cursor}`);
    items.push(...page.items);
    cursor = page.next_cursor ? `&cursor=${page.next_cursor}` : "";
  } while (cursor);
  return items;
}
