//! What is counted of this node's sessions.

use super::super::metrics::{Family, Kind, Sample, families, of};

families! {
    Gauge "mesh_sessions_live", "Sessions in memory: at work, or asked something in the last minute.": "" => |f| of(f.sessions.live);
    Gauge "mesh_sessions_watchers", "Readers who follow sessions of this node, here and at other nodes.": "" => |f| of(f.sessions.watchers);
    Counter "mesh_sessions_events_total", "Events of sessions that were written.": "" => |f| of(f.sessions.events);
    Counter "mesh_sessions_commits_total", "Writes to the disk in which they went; events by commits is how many share one.": "" => |f| of(f.sessions.commits);
    Counter "mesh_sessions_turns_total", "Turns of agents, by how they ended.":
        "outcome=\"done\"" => |f| of(f.sessions.turns[0]),
        "outcome=\"cancelled\"" => |f| of(f.sessions.turns[1]),
        "outcome=\"limit\"" => |f| of(f.sessions.turns[2]),
        "outcome=\"failed\"" => |f| of(f.sessions.turns[3]);
    Counter "mesh_sessions_tool_calls_total", "Calls of tools, by how they ended; unknown is one during which the node went down.":
        "outcome=\"done\"" => |f| of(f.sessions.tool_calls[0]),
        "outcome=\"failed\"" => |f| of(f.sessions.tool_calls[1]),
        "outcome=\"denied\"" => |f| of(f.sessions.tool_calls[2]),
        "outcome=\"cancelled\"" => |f| of(f.sessions.tool_calls[3]),
        "outcome=\"unknown\"" => |f| of(f.sessions.tool_calls[4]);
    Counter "mesh_sessions_model_calls_total", "Calls of models by agents, by how they ended.":
        "outcome=\"answered\"" => |f| of(f.sessions.model_calls[0]),
        "outcome=\"failed\"" => |f| of(f.sessions.model_calls[1]);
    Counter "mesh_sessions_tokens_total", "Tokens of those that were answered, as their providers count.":
        "kind=\"prompt\"" => |f| of(f.sessions.tokens[0]),
        "kind=\"answer\"" => |f| of(f.sessions.tokens[1]);
}
