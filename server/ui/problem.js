// A problem of a gateway: what it is, and what to do about it.

import { h } from "./dom.js";

/** The problem in words, and its remedy as it is typed on the gateway. */
export function problemInWords(problem) {
  return problem.remedy ? [`${problem.words}. `, h("code", { class: "remedy" }, problem.remedy)] : problem.words;
}

/** What is in the way between LANs, in a few words. */
const CAUSES = {
  refused: "its own rules refuse a prefix",
  not_admitted: "no operator has admitted a peer",
  underlay: "an address that it needs lies in a prefix of the mesh",
  not_applied: "a change could not be made on it",
  forwarding: "forwarding is off",
  firewall: "a rule of its firewall is in the way",
  nat: "it replaces addresses",
  route: "a route of this host is in the way",
  no_lan: "it has no address in its LAN",
  lan_down: "its LAN is down",
  return_route: "hosts of its LAN answer to another router",
  large_packets: "large packets are lost on the way",
  address_family: "they have no address family in common",
};

/** `frankfurt cannot reach new-york's LAN: a route of this host is in the way`. */
export function keptApart(mesh, node) {
  const apart = node.problems.filter((problem) => problem.lan === node.lan);
  const [first] = apart;
  const peers = new Set(apart.map((problem) => problem.peer));
  const peer = peers.size === 1 && first.peer ? mesh.nodes.get(first.peer) : null;
  const can = node.lan === "degraded" ? "cannot" : "may not";
  const whom = peer ? `${peer.site_name}'s LAN` : "the LANs of others";
  const cause = CAUSES[first?.code];
  return `${node.name} ${can} reach ${whom}${cause ? `: ${cause}` : ""}`;
}
