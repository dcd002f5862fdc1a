# shellcheck shell=bash disable=SC2154 # quickstart, lib.sh and two-nodes.sh set them
# Three nodes that share no mesh, only a CA: one has an agent of the second do a task by certificate, the third is revoked. Sourced by
# quickstart, after two-nodes.sh. Works with bash 3.2.

delegate_by_certificate() {
    part 3 "a CA, and a certificate for each of three nodes"
    shared=$nodes/shared
    ca=$shared/rivet-ca
    mkdir -p "$shared"
    ca_command init
    for name in first second third; do ca_command issue "$name" --ip 127.0.0.1; done
    on first ca list --dir "$ca" | sed 's/^/      /'

    part 4 "the nodes start; the second one's agent thinks with $model"
    python3 "$here/lead.py" writer@second >"$nodes/lead.port" 2>"$nodes/lead.log" &
    NODE_PIDS="$NODE_PIDS $!"
    wait_until "the stand-in for the first node's model does not start (log: $nodes/lead.log)" test -s "$nodes/lead.port"
    configure first "[[providers]]
name = \"lead\"
base_url = \"http://127.0.0.1:$(cat "$nodes/lead.port")/v1\"
models = [\"lead\"]
[[agents]]
id = \"lead\"
model = \"lead\"
tools = [\"delegate\"]
[[agents.policy]]
tools = [\"delegate\"]
then = \"allow\""
    configure second "[[agents]]
id = \"writer\"
description = \"writes short texts\"
model = \"$model\"
max_tokens = 48"
    configure third ""
    start_node second --model "$model_file" --bin-dir "$llama"
    start_node first
    start_node third
    for name in first second third; do
        wait_until "the channel of the $name node does not open" channel_port "$name"
        row "$name" "https://$name.mesh:$(channel_port "$name")"
    done
    wait_until "the first node does not hear of the second one's agent" knows_writer
    wait_until "$model is not ready" model_is_ready

    part 5 "the first node's agent has the second one's do a task"
    on first delegate lead "Tell me something about the sea." | sed 's/^/      /' ||
        node_failed second "the delegation failed"
    grep -h 'Received mesh delegation' "$nodes/second/log" | tail -n 1 | sed 's/^/      second: /'
    row curl "the same request, with the third node's certificate"
    ask_by_curl "$nodes/third.answer" || { tail_of "$nodes/third.answer"; node_failed second "curl was refused"; }
    grep -h '^data: .*durationMs' "$nodes/third.answer" | tail -n 1 | cut -c 1-160 | sed 's/^/      /'

    part 6 "the third node's certificate is revoked"
    ca_command revoke third
    wait_until "the third node is still let in" is_refused
    grep -h 'TLS handshake failed' "$nodes/second/log" | tail -n 1 | sed 's/^/      second: /'
    if [ "$once" = no ]; then keep_channel_running; fi
    printf '\nDone: one agent had another one do its task by certificate, and who was revoked is refused.\n'
}

# Everything of the CA lies in the folder that the nodes share: they read the revocation list there.
ca_command() {
    on first ca "$@" --dir "$ca" >"$nodes/ca.out" 2>&1 || {
        tail_of "$nodes/ca.out"
        die "qmt-cli ca $1 failed" "mend what it names, then run this again"
    }
}

# configure NAME MORE
configure() {
    cat >"$nodes/$1/config.toml" <<TOML
$2
[agent_channel]
enabled = true
node_name = "$1"
tls = true
bind = "127.0.0.1"
host = "127.0.0.1"
agent_channel_port = 0
storage_dir = "$shared"
ca_dir = "$ca"
role = "member"
TOML
}

# wait_until WHAT-IS-WRONG COMMAND...
wait_until() {
    local wrong=$1 tries=0
    shift
    until "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        nodes_run || node_failed second "a node ended"
        [ "$tries" != 300 ] || { tail_of "$nodes/second/log"; die "$wrong" "the logs in $nodes say why"; }
        sleep 0.2
    done
}

channel_port() {
    sed -n 's/.*agent channel listening.* address=127\.0\.0\.1:\([0-9]*\).*/\1/p' "$nodes/$1/log" | tail -n 1 | grep .
}

# The registry as the first node has it.
knows_writer() { by_curl first /api/mesh | grep -q writer; }

model_is_ready() {
    [ "$(on second models --json | value 'next((m["state"] for m in it if m["name"] == sys.argv[2]), "")' "$model")" = ready ]
}

# by_curl NODE PATH [FLAGS]: as the third node, with the flags that docs/agent-channel.md shows.
by_curl() {
    local port
    port=$(channel_port "$1")
    curl -sS -N --max-time 120 --cacert "$ca/intermediate/ca-chain.pem" --cert "$ca/issued/third.crt" --key "$ca/issued/third.key" \
        --resolve "$1.mesh:$port:127.0.0.1" "https://$1.mesh:$port$2" "${@:3}"
}

ask_by_curl() {
    by_curl second /api/message -H 'Accept: text/event-stream' \
        --json '{"fromAgent": "somebody", "toAgent": "writer", "message": "Tell me something about the moon."}' >"$1" 2>&1 &&
        grep -q '^event: done' "$1"
}

is_refused() { ! by_curl second /api/mesh/ping; }

keep_channel_running() {
    trap 'printf "\n"; exit 0' INT TERM
    cat <<TEXT

Running until Ctrl-C (or: kill $$)
      files    $ca
      logs     $nodes/second/log
Try in another terminal
      QMT_HOME=$(quoted "$nodes/first") $(quoted "$bin/qmt-cli") delegate lead "Write a line about the wind."
TEXT
    while nodes_run; do sleep 0.5; done
    tail_of "$nodes/second/log"
    node_failed first "a node ended"
}
