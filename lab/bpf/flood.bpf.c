/* A flood: the frame that it is given, again and again, with other numbers each time.
 *
 * Run by BPF_PROG_TEST_RUN on live frames; what is sent once is changed on when it comes again.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/tcp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "common/bpf/include/checksum.h"

#define NET 0x0a420000 /* 10.66.0.0/16 */

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* The far network's packets are passed on: an interface sends frames if its peer has a program. */
SEC("xdp")
int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("xdp")
int flood(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct iphdr *ip = (void *)(eth + 1);
	struct tcphdr *tcp = (void *)(ip + 1);
	__be32 saddr = bpf_htonl(NET | (bpf_get_prandom_u32() & 0xffff));
	__u32 seq = bpf_get_prandom_u32(), ack = bpf_get_prandom_u32();
	__be16 sport = bpf_get_prandom_u32() | bpf_htons(0x8000);
	__u64 changes;

	if ((void *)(tcp + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	if (tcp->syn)
		ack = 0;
	changes = changed(0, ip->saddr, saddr);
	ip->check = patched(ip->check, changes);
	changes = changed(changes, tcp->seq, seq);
	changes = changed(changes, tcp->ack_seq, ack);
	changes = changed(changes, tcp->source, sport);
	tcp->check = patched(tcp->check, changes);
	ip->saddr = saddr;
	tcp->seq = seq;
	tcp->ack_seq = ack;
	tcp->source = sport;
	return XDP_TX;
}
