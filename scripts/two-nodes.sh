# shellcheck shell=bash disable=SC2154 # lib.sh sets bin
# Two real nodes on this machine, or three, each with a home of its own; sourced after lib.sh. The first serves the model that
# scripts/setup installed, the second joins by an invite. Works with bash 3.2.
#
# begin_nodes, start_first [FLAGS], start_second [FLAGS], join_second, wait_for_model, or start_node NAME [FLAGS], join_third and
# wait_for_split; whatever ends the script ends them.

nodes=
NODE_PIDS=
export NO_PROXY="127.0.0.1,localhost${NO_PROXY:+,$NO_PROXY}" no_proxy="127.0.0.1,localhost${no_proxy:+,$no_proxy}"

# Makes the folder `nodes`. Call after use_cargo; sets llama (llama-server's folder), model_file and model (its name).
begin_nodes() {
    local paths
    paths=$("$here/setup" --paths) || exit 1
    llama=$(printf '%s\n' "$paths" | sed -n 1p)
    model_file=$(printf '%s\n' "$paths" | sed -n 2p)
    model=$(basename "$model_file" .gguf)
    nodes=$(cd "${TMPDIR:-/tmp}" && mktemp -d "$PWD/qmt.XXXXXX") ||
        die "cannot make a folder in ${TMPDIR:-/tmp}" "set TMPDIR to a folder that is writable"
    mkdir "$nodes/first" "$nodes/second" "$nodes/third"
    end_all_at_exit
}

end_all_at_exit() {
    trap end_all EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

# The folder with the logs stays after a failure only.
end_all() {
    local code=$?
    trap '' HUP INT TERM
    stop_step
    stop_nodes
    [ -d "$nodes" ] || return 0
    case $code in
        0 | 129 | 130 | 143) rm -rf "$nodes" ;;
        *) printf '%s:  logs: kept in %s\n' "$self" "$nodes" >&2 ;;
    esac
}

stop_nodes() {
    local pid tries
    for pid in $NODE_PIDS; do kill -TERM "$pid" 2>/dev/null || true; done
    for pid in $NODE_PIDS; do
        tries=0
        while kill -0 "$pid" 2>/dev/null; do
            tries=$((tries + 1))
            [ "$tries" != 150 ] || kill -KILL "$pid" 2>/dev/null || true
            sleep 0.1
        done
        wait "$pid" 2>/dev/null || true
    done
    NODE_PIDS=
}

# on NAME COMMAND...: what a person types at that node.
on() {
    local name=$1
    shift
    QMT_HOME=$nodes/$name "$bin/qmt-cli" "$@"
}

# value EXPRESSION [WORD]: of the JSON on standard input, called `it`.
value() { python3 -c 'import json, sys; it = json.load(sys.stdin); print(eval(sys.argv[1]))' "$@"; }

gateway_of() { on "$1" status --json | value 'it["gateway_url"]'; }

start_first() { start_node first --model "$model_file" --bin-dir "$llama" "$@"; }
start_second() { start_node second "$@"; }

# Returns when the node answers on its control socket.
start_node() {
    local name=$1 pid tries=0
    shift
    set -m # a process group of its own: Ctrl-C reaches this script alone, which then stops the nodes in order
    (
        unset QMT_EPHEMERAL_KEY
        NO_COLOR=1 QMT_HOME=$nodes/$name exec "$bin/qmt-node" --node-name "$name" "$@"
    ) >"$nodes/$name/out" 2>"$nodes/$name/log" </dev/null &
    pid=$!
    set +m
    NODE_PIDS="$NODE_PIDS $pid"
    until on "$name" status >/dev/null 2>&1; do
        tries=$((tries + 1))
        kill -0 "$pid" 2>/dev/null || node_failed "$name" "the $name node ended at its start"
        [ "$tries" != 300 ] || node_failed "$name" "the $name node did not answer on $nodes/$name/node.sock within 30 s"
        sleep 0.1
    done
}

# node_failed NAME WHAT
node_failed() {
    tail_of "$nodes/$1/log"
    die "$2 (log: $nodes/$1/log)" "mend what the log names, then run this again"
}

join_second() { join_first second; }
join_third() { join_first third; }

join_first() {
    local name=$1 token
    token=$(on first invite --name home --json | value 'it["token"]') ||
        node_failed first "the first node gave no invite"
    on "$name" join "$token" >"$nodes/join" 2>&1 || {
        tail_of "$nodes/join"
        node_failed "$name" "the $name node could not join the first one's mesh"
    }
}

# Until the second node sees the model as ready over the memory of three nodes.
wait_for_split() {
    local tries=0 over=0
    while [ "$over" != 3 ]; do
        tries=$((tries + 1))
        nodes_run || node_failed first "a node ended while the model was split"
        [ "$tries" != 600 ] || {
            tail_of "$(newest_log)"
            node_failed first "the model lies over $over nodes after three minutes, not over three"
        }
        [ "$tries" = 1 ] || sleep 0.3
        over=$(on second models --json 2>/dev/null |
            value 'max([len(p["workers"]) for m in it for p in m["providers"] if p["state"] == "ready"] or [0])') || over=0
    done
}

nodes_run() {
    local pid
    for pid in $NODE_PIDS; do kill -0 "$pid" 2>/dev/null || return 1; done
}

# Until the second node sees the model as ready at the first.
wait_for_model() {
    local tries=0 state=unknown
    while [ "$state" != ready ]; do
        tries=$((tries + 1))
        nodes_run || node_failed first "a node ended while the model was loading"
        [ "$tries" != 600 ] || {
            tail_of "$(newest_log)"
            node_failed first "the model is $state at the second node after three minutes"
        }
        [ "$tries" = 1 ] || sleep 0.3
        state=$(on second models --json 2>/dev/null |
            value 'next((m["state"] for m in it if m["name"] == sys.argv[2]), "unknown")' "$model") || state=unknown
        [ "$state" != failed ] || {
            tail_of "$(newest_log)"
            node_failed first "the first node could not start $model"
        }
    done
}

# llama-server's own.
newest_log() { find "$nodes/first/logs" -name '*.log' 2>/dev/null | sort | tail -n 1; }
