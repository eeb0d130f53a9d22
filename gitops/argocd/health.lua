-- Argo CD's question "is this InferenceService healthy?", answered from its status. Argo CD gives the resource as `obj`.
local function answer(status, message)
  return { status = status, message = message or "" }
end

local metadata, status = obj.metadata, obj.status or {}

if metadata.annotations ~= nil and metadata.annotations["millrace.dev/paused"] == "true" then
  return answer("Suspended", "the annotation millrace.dev/paused stops every change")
end
if status.observedGeneration ~= metadata.generation or status.conditions == nil then
  return answer("Progressing", "the operator has not seen this generation yet")
end

local conditions = {}
for _, condition in ipairs(status.conditions) do
  conditions[condition.type] = condition
end
local function is_true(name)
  return conditions[name] ~= nil and conditions[name].status == "True"
end
local ready = conditions["Ready"] or {}

if is_true("Stalled") then
  return answer("Degraded", conditions["Stalled"].message)
end
if ready.reason == "NoReplicas" then
  return answer("Suspended", ready.message)
end
if is_true("Reconciling") then
  return answer("Progressing", conditions["Reconciling"].message)
end
if is_true("Ready") then
  return answer("Healthy", ready.message)
end
return answer("Progressing", ready.message)
