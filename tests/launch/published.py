"""What gcloud and kubectl take, as far as the recipes use them, to refuse everything else.

The flags are those of the synopses at https://cloud.google.com/sdk/gcloud/reference/… (as stored in
2026), whole for Cloud TPU; for the others those that the pages named below use. kubectl's are of
https://kubernetes.io/docs/reference/kubectl/generated/.
"""

from __future__ import annotations

import shlex

WIDE = """access-token-file account billing-project configuration flags-file flatten format help
  impersonate-service-account log-http project quiet trace-token user-output-enabled verbosity"""
SSH = """dry-run force-key-file-overwrite internal-ip plain ssh-key-file strict-host-key-checking
  worker zone ssh-key-expiration ssh-key-expire-after"""
NEW = """async boot-disk data-disk description internal-ips labels metadata metadata-from-file
  network range reserved scopes service-account shielded-secure-boot spot subnetwork tags
  accelerator-type topology type zone"""

# Command: how many words come after it, its flags, and which of them must be there.
COMMANDS = {
  'gcloud compute tpus tpu-vm create': (
    1,
    NEW + ' preemptible queue-count version',
    'version zone',
  ),
  'gcloud compute tpus tpu-vm delete': (1, 'async zone', 'zone'),
  'gcloud compute tpus tpu-vm describe': (1, 'zone', 'zone'),
  'gcloud compute tpus tpu-vm scp': (2, SSH + ' compress recurse scp-flag', 'zone'),
  'gcloud compute tpus tpu-vm ssh': (1, SSH + ' ssh-flag command output-directory', 'zone'),
  'gcloud compute tpus queued-resources create': (
    1,
    NEW
    + """ guaranteed node-id node-count node-prefix runtime-version valid-after-duration
    valid-after-time valid-until-duration valid-until-time reservation-host-folder
    reservation-host-organization reservation-host-project""",
    'runtime-version zone accelerator-type',
  ),
  'gcloud compute tpus queued-resources delete': (1, 'async force zone', 'zone'),
  'gcloud compute tpus queued-resources describe': (1, 'zone', 'zone'),
  'gcloud compute tpus queued-resources list': (0, 'zone', ''),
  # kubernetes-engine/docs/how-to/cloud-storage-fuse-csi-driver-setup
  'gcloud container clusters create': (
    1,
    'addons cluster-version location workload-pool machine-type num-nodes',
    '',
  ),
  'gcloud container clusters get-credentials': (1, 'location dns-endpoint', ''),
  'gcloud container clusters delete': (1, 'location async', ''),
  # JobSet 0.13, docs/tasks/tpu_multislice; xpk 1.13.1 for --spot and --num-nodes.
  'gcloud container node-pools create': (
    1,
    'cluster location node-locations machine-type tpu-topology num-nodes spot',
    'cluster',
  ),
  'gcloud container node-pools delete': (1, 'cluster location async', 'cluster'),
  # storage/docs/create-hns-bucket
  'gcloud storage buckets create': (
    1,
    'location enable-hierarchical-namespace uniform-bucket-level-access',
    '',
  ),
  'gcloud storage buckets add-iam-policy-binding': (1, 'member role', 'member role'),
  'gcloud storage cp': (2, 'recursive', ''),
  'gcloud storage rm': (1, 'recursive', ''),
  'kubectl apply': (0, 'f filename server-side', ''),
  'kubectl create serviceaccount': (1, 'namespace', ''),
  'kubectl delete': (0, 'f filename', ''),
  'kubectl describe': (2, 'n namespace', ''),
  'kubectl get': (2, 'o output w watch l selector', ''),
  'kubectl logs': (0, 'f follow l selector prefix tail c container max-log-requests', ''),
}
# Of kubectl's short flags those that stand before a value of their own.
VALUED = {'f', 'l', 'o', 'n', 'c'}


def refusal(words: list[str]) -> str | None:
  """Why the program would refuse the command; None where it would take it."""
  name = next((name for name in COMMANDS if words[: len(name.split())] == name.split()), None)
  if name is None:
    return f'there is no command {" ".join(words)}'
  count, known, required = COMMANDS[name]
  known = {*known.split(), *(WIDE.split() if name.startswith('gcloud') else ())}
  rest, given, found = words[len(name.split()) :], [], set()
  while rest:
    word = rest.pop(0)
    if not word.startswith('-') or word == '-':
      given.append(word)
      continue
    flag = word.lstrip('-').partition('=')[0]
    if flag not in known or word.startswith('--') != (len(flag) > 1):
      return f'{name}: there is no flag {word}'
    found.add(flag)
    follows = name != 'kubectl logs' or flag != 'f'
    if not word.startswith('--') and flag in VALUED and follows:
      rest = rest[1:]
  missing = set(required.split()) - found
  if missing:
    return f'{name}: needs --{", --".join(sorted(missing))}'
  return None if len(given) == count else f'{name}: takes {count} words, not {given}'


def commands(text: str) -> list[list[str]]:
  """The gcloud and kubectl commands in a text, an indented line or a continued one each."""
  joined = text.replace('\\\n', ' ')
  lines = (line.lstrip('# ').partition('  #')[0] for line in joined.splitlines())
  return [shlex.split(line) for line in lines if line.startswith(('gcloud ', 'kubectl '))]
