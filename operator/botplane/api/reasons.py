"""Every reason that a condition or an event can have, and what to do about it.

The list is closed: a test compares it with the code, and the reference page is made from it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from botplane.api import network


class Reason(NamedTuple):
    """What a reason stands for."""

    meaning: str
    action: str = ""
    """What to do; empty when there is nothing to do."""


READY_REASONS: Final = frozenset(
    {"Provisioned", "Running", "Published", "ScaledToZero", "Suspended"}
)
"""Reasons of Ready=True: their events are of type Normal."""

DETAILS: Final = frozenset(
    {
        "AccessGranted", "AccountOpen", "Admin", "CapacityReserved", "ConfigurationReady",
        "Exposed", "Isolated",
        "NamespaceCreated", "NamespaceNotReady", "NotApplied", "NotMetered", "NotRequested",
        "NotSuspended",
        "PaymentOverdue", "PodsReady", "PoliciesEnforced", "QuotaApplied", "QuotaOverPlan",
        "Scheduled", "SpendLimit",
        "TenantSuspended", "UsageLimit", "User", "WithinLimits", "WithinPlan",
    }
)  # fmt: skip
"""Reasons of detailed conditions only: Ready never has them, so no event does."""

REASONS: Final[dict[str, Reason]] = {
    "APIServerError": Reason("The API server answered with an error.", "It is tried again."),
    "APIServerUnavailable": Reason("The API server did not answer.", "It is tried again."),
    "AccessGranted": Reason("Members are bound to their roles."),
    "AccountOpen": Reason("The billing account is open."),
    "Admin": Reason(
        "An administrator suspends the tenant.", "Remove the annotation `botplane.io/suspend`."
    ),
    "AmountTooPrecise": Reason(
        "An amount has more decimals than its currency.", "Round it in the plan."
    ),
    "BillingTermsFixed": Reason(
        "Currency, time zone or anchor day of a tenant changed.",
        "Restore them, or create a new tenant.",
    ),
    "BotLimitReached": Reason(
        "The plan allows fewer bots; the newest do not run.", "Delete bots or change the plan."
    ),
    "BotTooLarge": Reason(
        "A replica or volume is larger than the plan allows.", "Make it smaller."
    ),
    "ConfigurationReady": Reason("Configuration and secrets are in place."),
    "ConfigurationTooLarge": Reason(
        "`spec.runtimeConfig` is over 64 KiB.", "Put large data on the bot's volume."
    ),
    "Conflict": Reason(
        "An object of the same name was made for something else; it was not touched.",
        "Delete it or choose another name.",
    ),
    "CurrencyFixed": Reason("The currency of a published plan changed.", "Create another plan."),
    "CurrencyMismatch": Reason(
        "Tenant and plan have different currencies.", "Choose a plan in the tenant's currency."
    ),
    "CurrencyUnknown": Reason("The currency is not known.", "Use an ISO 4217 code."),
    "DatabaseBusy": Reason("Another writer held the rows.", "It is tried again."),
    "DatabaseUnavailable": Reason(
        "Postgres did not answer.", "It is tried again; look at the database when it lasts."
    ),
    "DeletionBlocked": Reason(
        "A tenant is being deleted, and something of it does not go.",
        "Ask who owns the finalizers that are named, or why the pod does not end.",
    ),
    "Exposed": Reason("Public ports are reached at their hosts."),
    "Forbidden": Reason(
        "The API server refused a write of botplane.",
        "It is tried again; when it lasts, compare roles and policies with `manifests/install`.",
    ),
    "ImageNotAllowed": Reason(
        "The image is not from a registry of the plan.", "Push it there, or ask for the registry."
    ),
    "CapacityReserved": Reason("The nodes can hold what the plan promises."),
    "CapacityNotCounted": Reason(
        "A new tenant waits until what plans promise is counted (strict installations).",
        "Nothing: it is counted every ten seconds.",
    ),
    "InsufficientCapacity": Reason(
        "The nodes cannot hold what the plan promises beside the older tenants.",
        "Add nodes, or choose a smaller plan.",
    ),
    "InternalError": Reason("botplane met a bug.", "Look at the operator's log and report it."),
    "InvalidObject": Reason("The API server found an object invalid.", "Change what it names."),
    "Isolated": Reason("Traffic is denied by default and allowed by rule."),
    "InvoiceUncollectible": Reason(
        "An invoice was not paid in time and is written off; the tenant is overdue.",
        "Pay it; bots resume by themselves.",
    ),
    "KindNotServed": Reason("The API server does not know a kind.", "Install its definition."),
    "LeadershipUnproven": Reason(
        "The operator must prove that it leads before it writes to Postgres, and could not yet.",
        "It is tried again.",
    ),
    "LimitNear": Reason(
        "Half, 80 or 90 percent of a limit of the billing period is used.",
        "Raise the limit or change the plan before all of it is.",
    ),
    "MeterUnknown": Reason("A price is for an unknown meter.", "Use one of the listed meters."),
    "NameInUse": Reason(
        "An open tenant of another uid has this name.",
        "Wait: it is closed once neither its Tenant nor its namespace is left.",
    ),
    "NamespaceConflict": Reason(
        "The tenant's namespace exists and is not its own; nothing in it was touched.",
        "Delete it, wait for the end of its retention, or choose another name.",
    ),
    "NamespaceCreated": Reason("The namespace exists and enforces Pod Security restricted."),
    "NamespaceInUse": Reason(
        "An open tenant of another uid has this namespace.", "Wait, as with `NameInUse`."
    ),
    "NamespaceMissing": Reason("The namespace is gone.", "It is made again."),
    "NamespaceNotReady": Reason("Waits for the namespace."),
    "NamespaceTerminating": Reason("The namespace is being deleted."),
    "NoPublicDomain": Reason(
        "A port is Public and the installation has no public domain.",
        "Set exposure to Cluster, or set `BOTPLANE_PUBLIC_DOMAIN`.",
    ),
    "NotApplied": Reason("Waits for the other conditions."),
    "NotMetered": Reason("Nothing was metered yet."),
    "NotProbed": Reason(
        "Nobody has tried whether the network enforces NetworkPolicies.",
        f"Run {network.COMMAND}.",
    ),
    "NotRequested": Reason("Nothing asks for it."),
    "NotSuspended": Reason("Nothing asks for a suspension."),
    "ObjectTerminating": Reason("An object is being deleted and will be made again."),
    "OverIncluded": Reason(
        "More is used than the plan includes.", "Nothing: the rest is billed by the plan's prices."
    ),
    "OverrideNotAllowed": Reason(
        "An override is above the plan's ceiling; the ceiling is used.", "Lower it."
    ),
    "PaymentConfirmationNeeded": Reason(
        "A payment waits for its payer.", "Confirm it at the payment processor."
    ),
    "PaymentDeclined": Reason(
        "A payment was declined.", "Nothing: it is tried again on the day that the message names."
    ),
    "PaymentDue": Reason(
        "An invoice is not paid, and there is no payment method.",
        "Pay by transfer, or set one with `botplane payment method`.",
    ),
    "PaymentMethodNeeded": Reason(
        "A payment was declined and is not tried again with this method.",
        "Set another one with `botplane payment method`.",
    ),
    "PaymentOverdue": Reason("An invoice is overdue.", "Pay it; bots resume by themselves."),
    "PlanJustPublished": Reason("Prices changed twice in a second.", "It is tried again."),
    "PlanInUse": Reason(
        "The plan was deleted and tenants still use it.", "Change their plan; then it goes."
    ),
    "PlanNotFound": Reason("The plan does not exist.", "Create it or name another one."),
    "PlanNotPublished": Reason("The plan's prices are not published yet.", "It is tried again."),
    "PodsNotCreated": Reason(
        "Kubernetes refuses to create the pods.", "The message has its words."
    ),
    "PodsNotReady": Reason("The pods do not become ready.", "Look at `kubectl describe pod`."),
    "PodsReady": Reason("All replicas are ready."),
    "PodsStarting": Reason("Replicas are starting."),
    "PoliciesEnforced": Reason(
        "The network enforces NetworkPolicies, as the last recorded probe found."
    ),
    "PriceInvalid": Reason("A price cannot be right.", "Change what the message names."),
    "ProbeFailed": Reason(
        "The network ignores NetworkPolicies: a probe reached a pod that they close.",
        f"Install a network plugin that enforces them, then run {network.COMMAND}.",
    ),
    "Provisioned": Reason("Everything is set up as the plan says."),
    "Published": Reason("The prices are in force."),
    "QuotaApplied": Reason("Quota and limits are those of the plan."),
    "QuotaExceeded": Reason(
        "The tenant's quota has no room for it.",
        "Lower resources or replicas, or change the plan.",
    ),
    "QuotaNotComputed": Reason("Kubernetes has not computed the quota's use yet."),
    "QuotaOverPlan": Reason(
        "More is in use than the plan allows; the quota falls as use falls.",
        "Make bots smaller or fewer, or change the plan.",
    ),
    "RegistryNotAllowed": Reason(
        "A registry of the tenant is not one of the plan.", "Remove it or ask for it."
    ),
    "ReplicaLimitReached": Reason("More replicas than the plan allows.", "Lower them."),
    "RequestAboveLimit": Reason("A request is above its limit.", "Lower it or raise the limit."),
    "Running": Reason("The bot runs as declared."),
    "ScaledToZero": Reason("The bot declares no replicas.", "Scale it to run it."),
    "Scheduled": Reason("Backups are made by schedule."),
    "SecretNotFound": Reason(
        "A Secret that the bot names does not exist.", "Create it in the bot's namespace."
    ),
    "SpendLimit": Reason(
        "The spend limit of the billing period is reached.", "Raise it, or wait for the next one."
    ),
    "SpendLimitReached": Reason(
        "The spend limit is used up: RPC is refused, and bots stop 15 minutes later.",
        "Raise `spec.billing.spendLimit` or grant a credit.",
    ),
    "StorageClassNotAllowed": Reason(
        "The StorageClass is not one of the plan.", "Name one of the listed classes."
    ),
    "Suspended": Reason("Bots are stopped, data is kept.", "The condition Suspended says why."),
    "TenantClosed": Reason("The billing account was closed.", "Create a new tenant."),
    "TenantNotFound": Reason(
        "The namespace is not that of a tenant.", "Create the bot in a tenant's namespace."
    ),
    "TenantNotReady": Reason("The tenant is not set up yet.", "`kubectl get tenant` says why."),
    "TenantSuspended": Reason(
        "The bot's tenant is suspended.", "`kubectl get tenant` says why; the bot resumes with it."
    ),
    "TimeZoneUnknown": Reason("Postgres does not know the time zone.", "Use an IANA name."),
    "UnknownTimeZone": Reason("The time zone is not known.", "Use an IANA name."),
    "UsageLimit": Reason(
        "All that the plan includes of a meter is used, and the plan stops there.",
        "Change the plan, or wait for the next billing period.",
    ),
    "UsageLimitReached": Reason(
        "All that the plan includes of a meter is used: RPC is refused, and bots stop 15 minutes "
        "later.",
        "Change the plan, or wait for the next billing period.",
    ),
    "User": Reason("`spec.suspend` is true.", "Set it to false."),
    "WithinLimits": Reason("Less than half of every limit is used."),
    "WithinPlan": Reason("Within the limits of the plan."),
    "WriteConflict": Reason("An object changed while it was written.", "It is tried again."),
}


def reasons_page() -> str:
    """Return the reference page of reasons, as Markdown."""
    rows = [f"| `{name}` | {r.meaning} | {r.action} |" for name, r in sorted(REASONS.items())]
    return "\n".join(
        [
            "# Reasons",
            "",
            "The same words stand in the condition, the event and the operator's log.",
            "",
            "| reason | meaning | what to do |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def events_page() -> str:
    """Return the reference page of events, as Markdown."""
    names = sorted(set(REASONS) - DETAILS)
    types = {name: "Normal" if name in READY_REASONS else "Warning" for name in names}
    about = (
        "An event is posted when `Ready` of a Tenant, BotDeployment or Plan changes its status or\n"
        "reason, when a tenant reaches 50, 80, 90 and 100 percent of a limit, once per billing\n"
        "period, and at each step of the dunning of an unpaid invoice. Events of cluster-scoped\n"
        "kinds are in the namespace `default`."
    )
    rows = [f"| `{name}` | {types[name]} | {REASONS[name].meaning} |" for name in names]
    head = ["# Events", "", about, "", "| reason | type | meaning |", "|---|---|---|"]
    return "\n".join([*head, *rows, ""])
