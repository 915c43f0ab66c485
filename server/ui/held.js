// Peers that a gateway has only until somebody confirms that they go.

import { request } from "./api.js";
import { complain, confirmed, count, h, inform } from "./dom.js";

/** As many are named in a line. */
const MOST_NAMES = 5;

const WORDS = {
  removed: "was removed",
  lost: "is not known any more",
  not_admitted: "was there before the lock, and no operator has admitted it",
};

/** Each held peer of a gateway and why it is held, and what confirms that they go. */
export function heldPeers(node) {
  const { peers, total } = node.held;
  const more = total - peers.length;
  return [
    h("p", {}, `${count(total, "peer")} here only until somebody confirms that they go:`),
    h("ul", { class: "problems" },
      peers.map((peer) => h("li", { title: `${peer.node} ${peer.identity}` }, `${peer.name} ${WORDS[peer.because]}`, peer.lost ? [" ", readmission(peer)] : null)),
      more > 0 ? h("li", {}, `and ${more} more`) : null),
    h("p", {}, ...confirmation(node)),
  ];
}

/** The button that takes in again a node that a restored database has lost. */
function readmission({ node, name, identity }) {
  const readmit = async () => {
    const question = `Its identity is ${identity}. Compare it with what wattle-agent status says on that gateway: whoever has this identity is let in.`;
    if (!await confirmed(`Take in ${name} again?`, question, "Take it in")) return;
    await request("POST", "/nodes/readmit", { nodes: [{ node, identity }] }).catch(complain);
  };
  return h("button", { type: "button", class: "changes", id: `readmit-${node}`, "aria-label": `Take in ${name} again`, click: readmit }, "Take in again");
}

/** The same in one line, for a list of what needs attention. */
export function heldLine(node) {
  const { peers, total } = node.held;
  const names = peers.slice(0, MOST_NAMES).map((peer) => peer.name).join(", ");
  const more = total - Math.min(peers.length, MOST_NAMES);
  return [` has ${count(total, "peer")} only until somebody confirms that they go: ${names}${more > 0 ? ` and ${more} more` : ""}. `, ...confirmation(node)];
}

/** What the rules of the gateway's host take for a confirmation. */
function confirmation(node) {
  const confirm = ["run ", h("code", {}, "wattle-agent confirm"), ` on ${node.name}`];
  if (!node.locked) return ["To confirm, ", ...confirm];
  return ["To confirm for all gateways, run ", h("code", {}, "wattle-agent lock sign"), "; for this one alone, ", ...confirm];
}

/** Says which gateways keep what was removed, if the coordinator's answer names any. */
export function informOfKept(name, answer) {
  const waits = answer?.waits_for_signature;
  if (!waits) return;
  const more = waits.count - waits.names.length;
  inform(`${name} is removed here, and not everywhere yet`,
    `These gateways require the lock and keep their tunnel with it until an operator signs the removal: ${waits.names.join(", ")}${more > 0 ? ` and ${more} more` : ""}. Run `,
    h("code", {}, "wattle-agent lock sign"), ".");
}

/** Who says of a node that it had been removed, and what to do. */
export function returnedInWords(node) {
  const { count: all, names } = node.removed_on;
  const by = names.slice(0, MOST_NAMES).join(", ");
  const more = all - Math.min(names.length, MOST_NAMES);
  return [`is known as removed on ${by}${more > 0 ? ` and ${more} more` : ""}, as after a restored backup. Revoke it again, or run `,
    h("code", {}, "wattle-agent confirm"), " there if it is to be back."];
}
