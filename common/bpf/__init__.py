"""eBPF from Python: a thin typed layer over libbpf.so.1 (Debian's package libbpf1).

Compile, open, adapt, load, use:

    from common.bpf import build, links, maps, features
    from common.bpf.objects import Object, SkBuff, XdpMd, XDP_TX

    path = build.object_of("balancer", "balancer")  # balancer/offload/bpf/balancer.bpf.c → .bpf.o
    with Object(path) as program_file:                    # or Object(octets, name="x")
        program_file.set_variable("vlan_enabled", 1)      # globals, `const volatile` ones too
        program_file.set_max_entries("flows", 100_000)
        program_file.select("on_packet")                  # other programs are not loaded
        program_file.load()                               # BpfError has the verifier log's end

        flows = program_file.map("flows")
        flows.update({"saddr": saddr, "sport": sport}, {"backend": 1})  # by the names in C
        flows.lookup(key).backend                         # None if there is no such key
        dict(flows.items())                               # batches; update_all, delete, pop, keys
        counters.lookup(0)                                # of a per-CPU map: a list of values
        clock = program_file.map("clock").map_memory()    # BPF_F_MMAPABLE: shared memory

        run = program_file.program("on_packet").test_run(frame, XdpMd(data_end=len(frame)))
        run.retval, run.data, run.duration_ns             # repeat=100_000 for measuring

What keys and values are, the object's BTF tells (common.bpf.btf): structs are named tuples, and
may be given as dicts or as octets. A Map owns its descriptor and outlives the Object; a Program
does not.

Attach; all have replace(program), detach() and close():

    link, mode = links.attach_xdp(program, index)         # native, else generic; mode= forces one
    link = links.attach_tc(program, index, links.Direction.INGRESS)  # tcx, else clsact

A link ends with its last descriptor unless it is pinned: common.bpf.pins keeps maps and links
of an instance under one directory, takes them over after a restart, and removes them.

    features.missing_kfuncs("bpf_sk_assign_tcp_reqsk")    # [] where the kernel has it
    ring = maps.RingBuffer(map, on_record); ring.poll(100)
"""

from common.bpf.libbpf import BpfError

__all__ = ["BpfError"]
